//! Row T1 for what the proxy dials: with the address of its client.

use super::*;

const CLIENT_OF_POD: [u8; 4] = [198, 18, 9, 9];
const ROOT: u32 = 0;

fn tproxy(edit: impl FnOnce(&mut Table)) -> Table {
    table(|t| {
        let pod = t.pods.get_mut(&CLIENT).expect("the table has it");
        pod.flags = pod.flags.with(PodFlags::TPROXY);
        edit(t);
    })
}

fn from(source: [u8; 4], dial: Dial) -> Dial {
    Dial {
        source: v4_mapped(source),
        ..dial
    }
}

#[test]
fn a_dial_for_a_client_is_followed() {
    let own = Verdict::Pass(PassCause::OwnAddress);
    let to_app = |uid, gid| dial(uid, gid, CLIENT_IP, 8080);
    check(Vec::from([
        Case {
            name: "by the sidecar, which is root in this mode",
            rules: tproxy(|_| ()),
            dial: from(CLIENT_OF_POD, to_app(ROOT, PROXY)),
            verdict: Verdict::Follow,
        },
        Case {
            name: "for a client in another pod of the node",
            rules: tproxy(|_| ()),
            dial: from(SERVER_IP, to_app(ROOT, PROXY)),
            verdict: Verdict::Follow,
        },
        Case {
            name: "by somebody else",
            rules: tproxy(|_| ()),
            dial: from(CLIENT_OF_POD, to_app(ROOT, APP)),
            verdict: own,
        },
        Case {
            name: "from nowhere in particular",
            rules: tproxy(|_| ()),
            dial: to_app(ROOT, PROXY),
            verdict: own,
        },
        Case {
            name: "from the pod itself",
            rules: tproxy(|_| ()),
            dial: from(CLIENT_IP, to_app(ROOT, PROXY)),
            verdict: own,
        },
        Case {
            name: "without TPROXY",
            rules: table(|_| ()),
            dial: from(CLIENT_OF_POD, to_app(ROOT, PROXY)),
            verdict: own,
        },
        Case {
            name: "O3 comes before, for a sidecar that is not root",
            rules: tproxy(|_| ()),
            dial: from(CLIENT_OF_POD, to_app(PROXY, PROXY)),
            verdict: Verdict::Redirect(Redirect {
                addr: LOOPBACK,
                port: 15_006_u16.to_be_bytes(),
                source: Source::KEPT,
                peer_netns: CLIENT,
                hop: Hop::PROXY_TO_PROXY_REQUEST,
            }),
        },
        Case {
            name: "the tunnel of such a pod is captured",
            rules: table(|t| set_flags(t, SERVER, PodFlags::INBOUND_ALL.with(PodFlags::TPROXY))),
            dial: dial(PROXY, PROXY, SERVER_IP, 15_008),
            verdict: to_inbound(),
        },
    ]));
}

#[test]
fn a_dial_for_a_client_must_be_followed() {
    let v6 = |host| {
        let mut addr = [0; 16];
        (addr[0], addr[15]) = (0xfd, host);
        addr
    };
    let v4 = from(CLIENT_OF_POD, dial(ROOT, PROXY, CLIENT_IP, 8080));
    let for_client = Dial {
        source: v6(9),
        destination: v6(1),
        ..v4
    };
    let from_loopback = Dial {
        source: ENVOY_INBOUND_SOURCE_V6,
        ..for_client
    };
    let pass = Verdict::Pass(PassCause::OwnAddress);
    let cases = [
        ("for a client", Verdict::Follow, for_client, true),
        ("Envoy's own source", Verdict::Follow, from_loopback, false),
        ("IPv4", Verdict::Follow, v4, true),
        ("not followed", pass, for_client, false),
    ];
    for (name, verdict, dial, expected) in cases {
        assert_eq!(verdict.must_be_followed(&dial), expected, "{name}");
    }
}
