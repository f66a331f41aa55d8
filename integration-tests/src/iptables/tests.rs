use super::*;

#[test]
fn counters_are_read_with_their_chain() {
    let text = "# Generated\n*nat\n:OUTPUT ACCEPT [7:420]\n[3:180] -A OUTPUT -j ISTIO_OUTPUT\n\
                [2:120] -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n";
    let counts = parse_counts(text).expect("the text is well formed");
    let found: Vec<_> = counts
        .iter()
        .map(|count| (count.chain.as_str(), count.packets))
        .collect();
    assert_eq!(found, [("OUTPUT", 3), ("ISTIO_REDIRECT", 2)]);
    assert!(
        parse_counts("[x] -A").is_err(),
        "a line without counters is refused"
    );
}
