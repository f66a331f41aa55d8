extern crate std;

use std::vec::Vec;

use bytemuck::Zeroable as _;

use super::*;

fn state() -> SocketState {
    SocketState {
        hop: Hop::APP_TO_PROXY,
        ..SocketState::zeroed()
    }
}

#[test]
fn only_the_thread_that_has_redirected_everything_knows_that_it_is_there() {
    let mut state = state();
    assert!(state.has_handed_over(1), "there is nothing");
    state.redirects_by(1);
    state.redirects_by(1);
    assert!(state.has_handed_over(1));
    assert!(!state.has_handed_over(2));
    state.redirects_by(2);
    for thread in [1, 2, 3] {
        assert!(!state.has_handed_over(thread), "{thread}");
    }
    state.redirects_by(1);
    assert!(!state.has_handed_over(1), "the other one is not forgotten");
}

#[test]
fn bulk_is_many_large_messages_and_few_small_ones() {
    let large = LARGE_MESSAGE_BYTES;
    // Sizes that repeat, and after how many messages that is bulk traffic, if ever.
    let cases: [(&[u32], Option<u32>); 5] = [
        (&[large], Some(64)),
        (&[large - 1], None),
        (&[large, 1], None),
        (&[large, large, 1], Some(188)),
        (&[1, 1, large], None),
    ];
    for (sizes, expected) in cases {
        let mut state = state();
        let messages = (1..).zip(sizes.iter().cycle()).take(1_000);
        let found: Vec<u32> = messages
            .filter(|(_, size)| state.is_bulk_with(**size))
            .map(|(count, _)| count)
            .collect();
        assert_eq!(found, Vec::from_iter(expected), "{sizes:?}");
    }
}

#[test]
fn who_may_be_redirected_to() {
    for (hop, by_default) in [
        (Hop::APP_TO_PROXY, false),
        (Hop::PROXY_TO_APP_RETURN, true),
        (Hop::PROXY_TO_PROXY_REQUEST, true),
        (Hop::PROXY_TO_PROXY_RESPONSE, true),
    ] {
        let mut state = SocketState { hop, ..state() };
        assert_eq!(state.may_be_redirected_to(), by_default, "{hop:?}");
        state.flags = SocketFlags::READER_OPTED_IN;
        assert!(state.may_be_redirected_to(), "{hop:?}");
    }
}
