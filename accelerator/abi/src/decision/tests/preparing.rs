//! A pod that is not captured yet: its entry is there for its listeners only.

use super::*;
use crate::{DnsPass, DnsVerdict, decide_datagram};

fn prepare(table: &mut Table, netns: u64) {
    let pod = table.pods.get_mut(&netns).expect("the table has it");
    *pod = pod.preparing();
}

#[test]
fn nothing_that_leaves_it_is_captured() {
    let rules = table(|t| {
        set_flags(t, CLIENT, PodFlags::DNS.with(PodFlags::DNS_ALL));
        prepare(t, CLIENT);
    });
    for dial in [
        dial(APP, APP, VIP, 80),
        dial(APP, APP, VIP, 53),
        dial(PROXY, PROXY, CLIENT_IP, 8080),
        dial(PROXY, PROXY, SERVER_IP, 8080),
    ] {
        let verdict = decided(&dial, &rules);
        assert_eq!(verdict, Verdict::Pass(PassCause::NotInPod), "{dial:?}");
    }
    let query = decide_datagram(&dial(APP, APP, VIP, 53), &rules);
    assert_eq!(query, DnsVerdict::Pass(DnsPass::NotCaptured));
}

#[test]
fn other_proxies_dial_it_as_they_are_told() {
    let rules = table(|t| prepare(t, SERVER));
    let verdict = decided(&dial(PROXY, PROXY, SERVER_IP, 8080), &rules);
    assert_eq!(verdict, Verdict::Pass(PassCause::NotCapturedInbound));
}
