//! The lab's own rendering of Istio's rules, which needs no Go, against Istio's.

use std::collections::BTreeMap;

use isthmus_integration_tests::iptables::{Capture, Ports, Ranges, render_rules};
use isthmus_integration_tests::istio::IstioIptables;
use serde_json::{Value, json};

#[test]
fn the_labs_rules_are_istios_rule_for_rule() {
    struct Case {
        name: &'static str,
        capture: Capture,
    }
    let cases = [
        Case {
            name: "what the lab, the demo and the benchmark use",
            capture: Capture::default(),
        },
        Case {
            name: "every list",
            capture: Capture {
                exclude_inbound_ports: vec![15090, 9000],
                exclude_outbound_ports: vec![3306, 53],
                exclude_outbound_ranges: vec!["169.254.169.254/32".into(), "198.18.0.0/16".into()],
                include_inbound_ports: Ports::All,
                include_outbound_ports: vec![9300, 9301],
                include_outbound_ranges: Ranges::Listed(vec![
                    "198.19.0.0/16".into(),
                    "0.0.0.0/0".into(),
                ]),
                proxy_gid: 3000,
                proxy_uid: 2000,
            },
        },
        Case {
            name: "listed inbound ports, loopback among the ranges",
            capture: Capture {
                exclude_inbound_ports: vec![9000],
                include_inbound_ports: Ports::Listed(vec![8080, 8443]),
                include_outbound_ranges: Ranges::Listed(vec!["127.1.2.3/32".into()]),
                ..Capture::default()
            },
        },
        Case {
            name: "nothing is captured",
            capture: Capture {
                exclude_inbound_ports: Vec::new(),
                include_inbound_ports: Ports::Listed(Vec::new()),
                include_outbound_ranges: Ranges::Listed(Vec::new()),
                ..Capture::default()
            },
        },
    ];
    let mut istio = IstioIptables::start().expect("`cargo xtask setup` builds it");
    for Case { name, capture } in cases {
        let theirs = istio.rules(&istio_config(&capture)).expect(name);
        assert_eq!(
            by_chain(&render_rules(&capture)),
            by_chain(&theirs.v4),
            "{name}"
        );
    }
}

fn istio_config(capture: &Capture) -> Value {
    let ports = |ports: &[u16]| -> String {
        let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
        ports.join(",")
    };
    json!({
        "INBOUND_PORTS_EXCLUDE": ports(&capture.exclude_inbound_ports),
        "INBOUND_PORTS_INCLUDE": match &capture.include_inbound_ports {
            Ports::All => "*".to_owned(),
            Ports::Listed(listed) => ports(listed),
        },
        "OUTBOUND_IPRANGES_EXCLUDE": capture.exclude_outbound_ranges.join(","),
        "OUTBOUND_IPRANGES_INCLUDE": match &capture.include_outbound_ranges {
            Ranges::All => "*".to_owned(),
            Ranges::Listed(listed) => listed.join(","),
        },
        "OUTBOUND_PORTS_EXCLUDE": ports(&capture.exclude_outbound_ports),
        "OUTBOUND_PORTS_INCLUDE": ports(&capture.include_outbound_ports),
        "PROXY_GID": capture.proxy_gid.to_string(),
        "PROXY_UID": capture.proxy_uid.to_string(),
    })
}

// Chains are independent: only the order within one counts. A chain without a way into it has no effect.
fn by_chain(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut chains = BTreeMap::<String, Vec<String>>::new();
    for line in text.lines() {
        if let Some(rule) = line.strip_prefix("-A ") {
            let (chain, rule) = rule.split_once(' ').expect("a chain and a rule");
            chains
                .entry(chain.to_owned())
                .or_default()
                .push(rule.to_owned());
        }
    }
    chains
}
