use super::*;

#[test]
fn rules_are_those_of_istio_in_its_order() {
    struct Case {
        name: &'static str,
        capture: Capture,
        golden: &'static str,
    }
    let cases = [
        Case {
            name: "defaults",
            capture: Capture::default(),
            golden: include_str!("../../testdata/iptables/default.golden"),
        },
        Case {
            name: "every list",
            capture: Capture {
                exclude_inbound_ports: vec![9000],
                exclude_outbound_ports: vec![3306],
                exclude_outbound_ranges: vec!["169.254.169.254/32".into()],
                include_inbound_ports: Ports::Listed(vec![8080, 8443]),
                include_outbound_ports: vec![9300],
                include_outbound_ranges: Ranges::Listed(vec!["198.19.0.0/16".into()]),
                proxy_gid: 3000,
                proxy_uid: 2000,
            },
            golden: include_str!("../../testdata/iptables/lists.golden"),
        },
        Case {
            name: "loopback is included, nothing inbound",
            capture: Capture {
                include_inbound_ports: Ports::Listed(Vec::new()),
                include_outbound_ranges: Ranges::Listed(vec!["127.1.2.3/32".into()]),
                ..Capture::default()
            },
            golden: include_str!("../../testdata/iptables/loopback.golden"),
        },
    ];
    for Case {
        name,
        capture,
        golden,
    } in cases
    {
        assert_eq!(render_rules(&capture), golden, "{name}");
    }
}

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
