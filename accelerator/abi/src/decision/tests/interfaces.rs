//! Row I1 for what leaves: by routes, by the socket's own interface, and by `lo`.

use super::*;
use crate::{DnsPass, DnsVerdict, decide_datagram};

const LO: u32 = LOOPBACK_IFINDEX;
const ETH0: u32 = 2;
const ETH1: u32 = 3;
/// Beyond the default route, by eth0.
const FAR: [u8; 4] = VIP;
/// In a network that is left for by eth1.
const BEHIND_ETH1: [u8; 4] = [198, 20, 0, 9];
/// In a part of it that is left for by eth0.
const BACK_BY_ETH0: [u8; 4] = [198, 20, 7, 9];
/// In a part of it that nothing leads to.
const NOWHERE: [u8; 4] = [198, 20, 8, 9];

/// A pod with two interfaces that leaves these alone.
fn excluding(interfaces: &[u32], edit: impl FnOnce(&mut Table)) -> Table {
    table(|t| {
        let pod = t.pods.get_mut(&CLIENT).expect("the table has it");
        pod.flags = pod.flags.with(PodFlags::INTERFACES_EXCLUDED);
        let key = |ifindex: &u32| InterfaceKey::new(CLIENT, *ifindex);
        t.interfaces = interfaces.iter().map(key).collect();
        for (base, bits, ifindex) in [
            ([0; 4], 0, ETH0),
            ([198, 20, 0, 0], 16, ETH1),
            ([198, 20, 7, 0], 24, ETH0),
            ([198, 20, 8, 0], 24, NO_INTERFACE),
        ] {
            let range = CidrKey::v4(CLIENT, RuleList::ROUTES, base, bits);
            t.routes.insert(range, ifindex);
        }
        edit(t);
    })
}

fn app(destination: [u8; 4]) -> Dial {
    dial(APP, APP, destination, 80)
}

#[test]
fn what_leaves_by_an_excluded_interface_is_left_alone() {
    type Row = (&'static str, &'static [u32], Dial, Verdict);
    let excluded = Verdict::Pass(PassCause::InterfaceExcluded);
    let own = Verdict::Pass(PassCause::OwnAddress);
    let by = |bound_ifindex, dial| Dial {
        bound_ifindex,
        ..dial
    };
    let rows: [Row; 16] = [
        ("by a network's route", &[ETH1], app(BEHIND_ETH1), excluded),
        ("by the default route", &[ETH1], app(FAR), to_outbound()),
        (
            "by a smaller route",
            &[ETH1],
            app(BACK_BY_ETH0),
            to_outbound(),
        ),
        ("by no route", &[ETH0, ETH1], app(NOWHERE), to_outbound()),
        (
            "the other one excluded",
            &[ETH0],
            app(BEHIND_ETH1),
            to_outbound(),
        ),
        ("the default route's excluded", &[ETH0], app(FAR), excluded),
        ("both excluded", &[ETH0, ETH1], app(BACK_BY_ETH0), excluded),
        (
            "none excluded that is there",
            &[9],
            app(BEHIND_ETH1),
            to_outbound(),
        ),
        ("to itself", &[ETH0, ETH1], app(CLIENT_IP), own),
        ("to itself, lo excluded", &[LO], app(CLIENT_IP), excluded),
        ("to loopback", &[ETH0, ETH1], app([127, 0, 0, 1]), own),
        ("lo excluded", &[LO], app([127, 0, 0, 1]), excluded),
        ("lo excluded, elsewhere", &[LO], app(FAR), to_outbound()),
        ("bound to it", &[ETH1], by(ETH1, app(FAR)), excluded),
        (
            "bound to another",
            &[ETH1],
            by(ETH0, app(BEHIND_ETH1)),
            to_outbound(),
        ),
        (
            "bound to it, to itself",
            &[ETH1],
            by(ETH1, app(CLIENT_IP)),
            own,
        ),
    ];
    for (name, interfaces, dial, verdict) in rows {
        assert_eq!(
            decided(&dial, &excluding(interfaces, |_| ())),
            verdict,
            "{name}"
        );
    }
}

#[test]
fn everybody_is_left_alone_before_any_other_rule() {
    let rules = excluding(&[ETH0], |t| {
        port_rule(t, CLIENT, RuleList::EXCLUDE_OUTBOUND, 443);
    });
    let excluded = Verdict::Pass(PassCause::InterfaceExcluded);
    // A proxy's dial to another pod arrives there as one from anywhere does.
    for dial in [
        dial(PROXY, PROXY, SERVER_IP, 8080),
        dial(APP, APP, FAR, 443),
    ] {
        assert_eq!(decided(&dial, &rules), excluded, "{dial:?}");
    }
}

#[test]
fn routes_of_a_pod_that_leaves_no_interface_alone_do_not_matter() {
    let rules = excluding(&[ETH1], |t| set_flags(t, CLIENT, PodFlags::OUTBOUND_ALL));
    assert_eq!(decided(&app(BEHIND_ETH1), &rules), to_outbound());
}

#[test]
fn queries_that_leave_by_it_are_left_alone_too() {
    let rules = excluding(&[ETH1], |t| {
        let flags = PodFlags::DNS.with(PodFlags::DNS_ALL);
        set_flags(t, CLIENT, flags.with(PodFlags::INTERFACES_EXCLUDED));
    });
    let query = |to| decide_datagram(&dial(APP, APP, to, 53), &rules);
    let excluded = DnsVerdict::Pass(DnsPass::InterfaceExcluded);
    assert_eq!(query(BEHIND_ETH1), excluded);
    assert_eq!(query(FAR), DnsVerdict::ToAgent);
    let by_tcp = decided(&dial(APP, APP, BEHIND_ETH1, 53), &rules);
    assert_eq!(by_tcp, Verdict::Pass(PassCause::InterfaceExcluded));
}
