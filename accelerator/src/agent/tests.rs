//! The agent on a datapath that only remembers.

use std::{io, net::IpAddr};

use isthmus_accel_abi::{InterfaceKey, PodConfig, v4_mapped};
use isthmus_accel_core::{MapOp, Routes, Sources};
use isthmus_accel_datapath::fake::FakeDatapath;
use isthmus_api::node_config::IpRange;

use super::*;
use crate::resolve::LookupError;

#[test]
fn pods_come_and_go() {
    let mut agent = Agent::new(FakeDatapath::default());
    agent.handle_config(config(&["a", "b"]));
    let step = agent.converge().expect("the fake takes it");
    assert_eq!(step.ops, 0);
    assert_eq!(
        render(&step),
        [
            "pod default/a is left to iptables (waiting): /run/netns/a was not looked at yet",
            "pod default/b is left to iptables (waiting): /run/netns/b was not looked at yet",
        ]
    );
    assert!(agent.is_waiting());

    agent.handle_lookups(lookups([("a", found(1)), ("b", Err(absent("b")))]));
    assert_eq!(
        render(&agent.converge().expect("the fake takes it")),
        [
            "pod default/a is accelerated (netns cookie 1, 198.18.0.1)",
            "pod default/b is left to iptables (waiting): /run/netns/b does not exist",
        ]
    );
    assert_eq!(pods(&agent), [1]);

    agent.handle_lookups(lookups([("b", found(2))]));
    let step = agent.converge().expect("the fake takes it");
    assert_eq!(
        render(&step),
        ["pod default/b is accelerated (netns cookie 2, 198.18.0.2)"]
    );
    assert_eq!(pods(&agent), [1, 2]);
    assert!(!agent.is_waiting());

    agent.handle_config(config(&["b"]));
    let step = agent.converge().expect("the fake takes it");
    assert_eq!(
        render(&step),
        ["pod default/a is no longer in the configuration"]
    );
    assert_eq!(pods(&agent), [2]);

    agent.handle_config(config(&[]));
    agent.converge().expect("the fake takes it");
    assert_eq!(agent.datapath().state, FakeDatapath::default().state);
}

#[test]
fn a_namespace_that_is_made_anew_replaces_the_old_one() {
    let mut agent = running(&["a"]);
    agent.handle_lookups(lookups([("a", found(7))]));
    let step = agent.converge().expect("the fake takes it");
    assert_eq!(
        render(&step),
        ["pod default/a is accelerated (netns cookie 7, 198.18.0.7)"]
    );
    assert_eq!(pods(&agent), [7]);
}

#[test]
fn lookups_that_fail_drop_a_pod_only_if_it_is_gone() {
    struct Case {
        name: &'static str,
        error: LookupError,
        is_kept: bool,
    }
    let path = || PathBuf::from("/run/netns/a");
    let cases = [
        Case {
            name: "gone",
            error: LookupError::Absent { path: path() },
            is_kept: false,
        },
        Case {
            name: "unmounted",
            error: LookupError::NotNamespace { path: path() },
            is_kept: false,
        },
        Case {
            name: "no address",
            error: LookupError::NoAddress { path: path() },
            is_kept: false,
        },
        Case {
            name: "the node's",
            error: LookupError::HostNamespace { path: path() },
            is_kept: false,
        },
        Case {
            name: "no file descriptor left",
            error: LookupError::Kernel {
                action: "opened",
                path: path(),
                source: io::Error::from_raw_os_error(24),
            },
            is_kept: true,
        },
    ];

    for Case {
        name,
        error,
        is_kept,
    } in cases
    {
        let mut agent = running(&["a"]);
        agent.handle_lookups(lookups([("a", Err(error))]));
        agent.converge().expect("the fake takes it");
        assert_eq!(!pods(&agent).is_empty(), is_kept, "{name}");
    }
}

#[test]
fn a_restart_touches_nothing_that_is_right() {
    let before = running(&["a", "b"]).datapath;
    let ops = before.applied.len();

    let mut agent = Agent::new(before);
    agent.handle_config(config(&["a", "b"]));
    agent.handle_lookups(lookups([("a", found(1)), ("b", found(2))]));
    let step = agent.converge().expect("the fake takes it");
    assert_eq!(step.ops, 0);
    assert_eq!(agent.datapath().applied.len(), ops);
    assert_eq!(step.changes.len(), 2, "but it says what it found");
}

#[test]
fn a_restart_repairs_what_is_wrong() {
    let mut damaged = running(&["a"]).datapath;
    let stranger = MapOp::PutPod {
        netns_cookie: 99,
        config: PodConfig::istio_default(),
    };
    damaged.state.apply(&stranger);
    damaged.state.apply(&MapOp::RemoveAddr {
        addr: v4_mapped([198, 18, 0, 1]),
    });

    let mut agent = Agent::new(damaged);
    agent.handle_config(config(&["a"]));
    agent.handle_lookups(lookups([("a", found(1))]));
    assert_eq!(agent.converge().expect("the fake takes it").ops, 2);
    assert_eq!(agent.datapath().state, running(&["a"]).datapath.state);
}

#[test]
fn a_refused_operation_is_tried_again() {
    let mut agent = Agent::new(FakeDatapath {
        is_next_op_refused: true,
        ..FakeDatapath::default()
    });
    agent.handle_config(config(&["a"]));
    agent.handle_lookups(lookups([("a", found(1))]));
    agent.converge().expect_err("the fake refuses");
    assert_eq!(
        pods(&agent),
        Vec::<u64>::new(),
        "the pod does not appear before its rules"
    );
    agent.converge().expect("the fake takes it");
    assert_eq!(agent.datapath().state, running(&["a"]).datapath.state);
}

#[test]
fn a_pod_is_linked_before_it_is_captured() {
    let agent = running(&["a"]);
    let applied = agent.datapath().applied.iter();
    let steps: Vec<&str> = applied.filter_map(of_a_pod).collect();
    assert_eq!(steps, ["prepared", "linked", "captured"]);
}

#[test]
fn a_pod_whose_namespace_takes_no_link_is_not_captured_and_keeps_nobody_from_it() {
    let mut agent = Agent::new(FakeDatapath {
        unlinkable: [1].into(),
        ..FakeDatapath::default()
    });
    agent.handle_config(config(&["a", "b"]));
    agent.handle_lookups(lookups([("a", found(1)), ("b", found(2))]));
    let step = agent.converge().expect("it is about one pod only");
    let reason = "attaching to namespace 1 failed: Argument list too long (os error 7)";
    let failure = step.failure.as_ref().expect("it is told");
    assert_eq!(render_chain(failure), reason);
    assert_eq!(
        render(&step),
        [
            &format!("pod default/a is left to iptables (waiting): {reason}"),
            "pod default/b is accelerated (netns cookie 2, 198.18.0.2)",
        ]
    );
    let captured = |agent: &Agent<FakeDatapath>| -> Vec<u64> {
        let pods = agent.datapath().state.pods.iter();
        let captured = pods.filter(|(_, config)| config.is_in_force());
        captured.map(|(cookie, _)| *cookie).collect()
    };
    assert_eq!(captured(&agent), [2]);
    assert!(agent.is_waiting(), "it is tried again soon");

    agent.datapath.unlinkable.clear();
    let step = agent.converge().expect("the fake takes it");
    assert!(step.failure.is_none());
    assert_eq!(
        render(&step),
        ["pod default/a is accelerated (netns cookie 1, 198.18.0.1)"]
    );
    assert_eq!(captured(&agent), [1, 2]);
    assert_eq!(agent.datapath().state, running(&["a", "b"]).datapath.state);
}

#[test]
fn a_pod_to_whose_sidecar_no_way_leads_back_is_left_to_iptables() {
    let mut agent = Agent::new(FakeDatapath {
        wayless: [1].into(),
        ..FakeDatapath::default()
    });
    agent.handle_config(parse(
        "pods:\n- {name: default/a, netns: /run/netns/a, annotations: \
         {sidecar.istio.io/interceptionMode: TPROXY}}\n- {name: default/b, netns: /run/netns/b}",
    ));
    agent.handle_lookups(lookups([("a", found(1)), ("b", found(2))]));
    let step = agent.converge().expect("it is about one pod only");
    assert!(step.failure.is_some(), "it is told");
    assert_eq!(
        render(&step),
        [
            "pod default/a is left to iptables (waiting): the way back to the sidecar cannot be made in \
             /run/netns/a: Istio's ip rule for mark 1337 is there for IPv4 and not for IPv6: set \
             ISTIO_DUAL_STACK to \"false\" in the pod's proxy.istio.io/config",
            "pod default/b is accelerated (netns cookie 2, 198.18.0.2)",
        ]
    );
    assert_eq!(pods(&agent), [2]);
    assert_eq!(agent.datapath().state.steered, [2].into());
    assert!(agent.is_waiting(), "it is tried again soon");

    agent.datapath.wayless.clear();
    let step = agent.converge().expect("the fake takes it");
    assert_eq!(
        render(&step),
        ["pod default/a is accelerated (netns cookie 1, 198.18.0.1)"]
    );
    assert_eq!(pods(&agent), [1, 2]);
}

#[test]
fn a_namespace_is_linked_anew_when_its_sidecar_dials_for_its_clients() {
    let mut agent = running(&["a"]);
    let applied = agent.datapath().applied.len();
    agent.handle_config(parse(
        "pods: [{name: default/a, netns: /run/netns/a, annotations: \
         {sidecar.istio.io/interceptionMode: TPROXY}}]",
    ));
    agent.converge().expect("the fake takes it");
    let steps = agent.datapath().applied[applied..].iter();
    let steps: Vec<&str> = steps.filter_map(of_a_pod).collect();
    assert_eq!(
        steps,
        ["removed", "unlinked", "prepared", "linked", "captured"]
    );
}

#[test]
fn pods_are_left_alone_for_a_reason() {
    struct Case {
        annotation: (&'static str, &'static str),
        change: &'static str,
    }
    let cases = [
        Case {
            annotation: ("sidecar.istio.io/interceptionMode", "NONE"),
            change: "pod default/a is left to iptables (left-alone): it asks not to be captured",
        },
        Case {
            annotation: ("ambient.istio.io/redirection", "enabled"),
            change: "pod default/a is left to iptables (left-alone): the pod has no sidecar of its own, so \
                     it is left to ztunnel",
        },
    ];

    for Case {
        annotation: (name, value),
        change,
    } in cases
    {
        let mut agent = running(&["a"]);
        agent.handle_config(parse(&format!(
            "pods: [{{name: default/a, netns: /run/netns/a, annotations: {{{name}: {value}}}}}]"
        )));
        assert_eq!(agent.wanted(), BTreeMap::new(), "{name}");
        let step = agent.converge().expect("the fake takes it");
        assert_eq!(render(&step), [change], "{name}");
        assert_eq!(pods(&agent), Vec::<u64>::new(), "{name}");
        assert!(!agent.is_waiting(), "{name}: nothing will change that");
    }
}

#[test]
fn an_interface_that_is_left_out_is_followed_by_its_number() {
    type Row = (&'static [(&'static str, u32)], &'static [u32]);
    let mut agent = Agent::new(FakeDatapath::default());
    agent.handle_config(parse(
        "pods: [{name: default/a, netns: /run/netns/a, annotations: \
         {traffic.sidecar.istio.io/excludeInterfaces: net1}}]",
    ));
    let with = |interfaces: &[(&str, u32)]| {
        let mut namespace = found(1).expect("it is there");
        let named = |(name, ifindex): &(&str, u32)| ((*name).to_owned(), *ifindex);
        namespace.interfaces = interfaces.iter().map(named).collect();
        lookups([("a", Ok(namespace))])
    };
    let steps: [Row; 4] = [
        (&[("eth0", 2)], &[]),
        (&[("eth0", 2), ("net1", 3)], &[3]),
        (&[("eth0", 2), ("net1", 9)], &[9]),
        (&[("eth0", 2), ("other", 9)], &[]),
    ];
    for (interfaces, excluded) in steps {
        agent.handle_lookups(with(interfaces));
        agent.converge().expect("the fake takes it");
        let loaded = agent.datapath().state.interfaces.iter();
        let loaded: Vec<u32> = loaded.map(InterfaceKey::ifindex).collect();
        assert_eq!(loaded, excluded, "{interfaces:?}");
    }
    let steered = &agent.datapath().state.steered;
    assert_eq!(steered, &[1].into(), "all the time");
    let netns = &agent.datapath().namespaces;
    assert_eq!(
        netns,
        &[(1, self::netns("a"))].into(),
        "so that it is found"
    );
}

#[test]
fn what_virtual_machines_send_is_taken_where_the_kernel_can() {
    for is_old_kernel in [false, true] {
        let mut agent = Agent::new(FakeDatapath {
            is_old_kernel,
            ..FakeDatapath::default()
        });
        agent.handle_config(parse(
            "pods: [{name: default/a, netns: /run/netns/a, annotations: \
             {istio.io/reroute-virtual-interfaces: k6t0}}]",
        ));
        let mut namespace = found(1).expect("it is there");
        namespace.interfaces.insert("k6t0".to_owned(), 7);
        agent.handle_lookups(lookups([("a", Ok(namespace))]));
        agent.converge().expect("the fake takes it");
        let state = &agent.datapath().state;
        let key = InterfaceKey::new(1, 7);
        // What arrives by it is no inbound traffic, on any kernel.
        assert_eq!(state.virtual_interfaces, [key].into());
        assert_eq!(state.virtual_links.contains(&key), !is_old_kernel);
        let step = agent.converge().expect("the fake takes it");
        assert_eq!(step.ops, 0, "and that is all");
    }
}

#[test]
fn routes_are_asked_for_and_followed_where_an_interface_is_left_out() {
    let mut agent = Agent::new(FakeDatapath::default());
    agent.handle_config(parse(
        "pods:\n- {name: default/a, netns: /run/netns/a, annotations: \
         {traffic.sidecar.istio.io/excludeInterfaces: net1}}\n- {name: default/b, netns: /run/netns/b}",
    ));
    let wanted = [
        (netns("a"), Wish::AddressesAndRoutes),
        (netns("b"), Wish::Addresses),
    ];
    assert_eq!(agent.wanted(), wanted.into());

    let with = |routes: &[(&str, u32)]| {
        let route = |(range, ifindex): &(&str, u32)| {
            let range = IpRange::parse(range).expect(range);
            (range, [*ifindex].into())
        };
        let mut namespace = found(1).expect("it is there");
        namespace.routes = routes.iter().map(route).collect();
        lookups([("a", Ok(namespace))])
    };
    let steps: [&[(&str, u32)]; 3] = [
        &[("0.0.0.0/0", 2), ("198.18.1.0/24", 3)],
        &[("0.0.0.0/0", 3), ("198.18.2.0/24", 2)],
        &[],
    ];
    for routes in steps {
        agent.handle_lookups(with(routes));
        agent.converge().expect("the fake takes it");
        let loaded = agent.datapath().state.routes.values();
        let loaded: Vec<u32> = loaded.copied().collect();
        let expected: Vec<u32> = routes.iter().map(|(_, ifindex)| *ifindex).collect();
        assert_eq!(loaded, expected, "{routes:?}");
        assert_eq!(pods(&agent), [1], "all the time");
    }
}

#[test]
fn two_names_for_one_namespace_are_one_too_many() {
    let mut agent = Agent::new(FakeDatapath::default());
    agent.handle_config(config(&["a", "b"]));
    agent.handle_lookups(lookups([("a", found(1)), ("b", found(1))]));
    assert_eq!(
        render(&agent.converge().expect("the fake takes it")),
        [
            "pod default/a is accelerated (netns cookie 1, 198.18.0.1)",
            "pod default/b is left to iptables (refused): its network namespace is the one of pod default/a",
        ]
    );
}

#[test]
fn lookups_nobody_asked_for_are_ignored() {
    let mut agent = running(&["a"]);
    agent.handle_lookups(lookups([("b", found(2))]));
    agent.converge().expect("the fake takes it");
    assert_eq!(pods(&agent), [1]);
}

// An agent that has loaded these pods, with cookies 1, 2, …
fn running(names: &[&str]) -> Agent<FakeDatapath> {
    let mut agent = Agent::new(FakeDatapath::default());
    agent.handle_config(config(names));
    agent.handle_lookups(
        names
            .iter()
            .zip(1..)
            .map(|(name, cookie)| (netns(name), found(cookie)))
            .collect(),
    );
    agent.converge().expect("the fake takes it");
    agent
}

fn config(names: &[&str]) -> NodeConfig {
    let pod = |name: &&str| format!("{{name: default/{name}, netns: /run/netns/{name}}}");
    let pods: Vec<String> = names.iter().map(pod).collect();
    parse(&format!("pods: [{}]", pods.join(", ")))
}

fn parse(pods: &str) -> NodeConfig {
    let document = format!("apiVersion: isthmus.io/v1alpha1\nkind: NodeConfig\n{pods}\n");
    NodeConfig::parse(document.as_bytes()).expect("a good document")
}

fn lookups<const N: usize>(lookups: [(&str, Result<Namespace, LookupError>); N]) -> Lookups {
    lookups
        .into_iter()
        .map(|(name, lookup)| (netns(name), lookup))
        .collect()
}

#[allow(
    clippy::unnecessary_wraps,
    reason = "it stands beside lookups that fail"
)]
fn found(cookie: u8) -> Result<Namespace, LookupError> {
    let addrs = [IpAddr::from([198, 18, 0, cookie])].into();
    Ok(Namespace {
        addrs,
        cookie: u64::from(cookie),
        interfaces: [("eth0".to_owned(), 2)].into(),
        routes: Routes::new(),
        sources: Sources::default(),
    })
}

// What an operation is to a pod that appears.
fn of_a_pod(op: &MapOp) -> Option<&'static str> {
    let steps = [
        (
            matches!(op, MapOp::PutPod { config, .. } if !config.is_in_force()),
            "prepared",
        ),
        (matches!(op, MapOp::AttachNetns { .. }), "linked"),
        (matches!(op, MapOp::DetachNetns { .. }), "unlinked"),
        (matches!(op, MapOp::RemovePod { .. }), "removed"),
        (
            matches!(op, MapOp::PutPod { config, .. } if config.is_in_force()),
            "captured",
        ),
    ];
    let (_, step) = steps.into_iter().find(|(is_it, _)| *is_it)?;
    Some(step)
}

fn absent(name: &str) -> LookupError {
    LookupError::Absent { path: netns(name) }
}

fn netns(name: &str) -> PathBuf {
    format!("/run/netns/{name}").into()
}

fn pods(agent: &Agent<FakeDatapath>) -> Vec<u64> {
    agent.datapath().state.pods.keys().copied().collect()
}

fn render(step: &Step) -> Vec<String> {
    step.changes.iter().map(ToString::to_string).collect()
}
