//! Tables of documents and annotations, good and bad, and what they mean.

use std::collections::BTreeSet;

use super::{annotations::parse_annotations, *};

const HEAD: &str = "apiVersion: isthmus.io/v1alpha1\nkind: NodeConfig\n";

#[test]
#[allow(clippy::too_many_lines, reason = "a table, one case after the other")]
fn refuses_what_is_no_node_config() {
    struct Case {
        name: &'static str,
        document: String,
        error: &'static str,
    }
    let pods = |pods: &str| format!("{HEAD}pods:\n{pods}");
    let case = |name, document: String, error| Case {
        name,
        document,
        error,
    };
    let cases = [
        case(
            "an empty file",
            String::new(),
            "the document is empty: to accelerate no pod, write `pods: []` under its apiVersion and kind",
        ),
        case(
            "comments only",
            "# nothing\n---\n".to_owned(),
            "the document is empty: to accelerate no pod, write `pods: []` under its apiVersion and kind",
        ),
        case(
            "a binary file",
            "\0\u{1}\u{2}".to_owned(),
            "line 1, column 1: unexpected character: `\\u{0}'",
        ),
        case(
            "plain text",
            "hello\n".to_owned(),
            "line 1, column 1: expected fields (`name: value`)",
        ),
        case(
            "cut short by a half-finished write",
            pods("- {name: default/a, netns: \"/run/net"),
            "line 4, column 28: pods: unclosed quote",
        ),
        case(
            "no pods",
            HEAD.to_owned(),
            "line 2, column 1: missing field `pods`",
        ),
        case(
            "pods is null",
            format!("{HEAD}pods:\n"),
            "line 3, column 5: pods: expected a list; for none write `[]`",
        ),
        case(
            "two documents",
            format!("{HEAD}pods: []\n---\n{HEAD}pods: []\n"),
            "line 5, column 1: a second document begins here: the accelerator reads one NodeConfig",
        ),
        case(
            "another version",
            "apiVersion: isthmus.io/v2\nkind: NodeConfig\npods: []\n".to_owned(),
            "apiVersion: \"isthmus.io/v2\" is not known: expected \"isthmus.io/v1alpha1\"",
        ),
        case(
            "another kind",
            "apiVersion: isthmus.io/v1alpha1\nkind: EnvoyResources\npods: []\n".to_owned(),
            "kind: \"EnvoyResources\" is not for the accelerator: expected \"NodeConfig\"",
        ),
        case(
            "an unknown field",
            pods("- {name: default/a, netns: /run/netns/a, proxyUid: 1}"),
            "line 4, column 42: pods[0].proxyUid: unknown field `proxyUid`, expected one of name, netns, \
             proxyUID, proxyGID, annotations, dnsCapture, dnsServers",
        ),
        case(
            "a field twice",
            pods("- {name: default/a, netns: /run/netns/a, name: default/b}"),
            "line 4, column 42: pods[0]: duplicate mapping key: name",
        ),
        case(
            "a pod without a network namespace",
            pods("- name: default/a"),
            "line 4, column 3: pods[0]: missing field `netns`",
        ),
        case(
            "a user that is no number",
            pods("- {name: default/a, netns: /run/netns/a, proxyUID: -1}"),
            "line 4, column 52: pods[0].proxyUID: expected a number from 0 to 4294967295",
        ),
        case(
            "an annotation that is no string",
            pods(
                "- {name: default/a, netns: /run/netns/a, annotations: {status.sidecar.istio.io/port: 80}}",
            ),
            "line 4, column 86: pods[0].annotations.status.sidecar.istio.io/port: The string value [80] must \
             be quoted",
        ),
        case(
            "a name without a namespace",
            pods("- {name: client, netns: /run/netns/a}"),
            "pods[0].name: \"client\" is no pod name: expected namespace/name in lower case, such as \
             default/client",
        ),
        case(
            "a name in upper case",
            pods("- {name: default/Client, netns: /run/netns/a}"),
            "pods[0].name: \"default/Client\" is no pod name: expected namespace/name in lower case, such as \
             default/client",
        ),
        case(
            "a name twice",
            pods(
                "- {name: default/a, netns: /run/netns/a}\n- {name: default/a, netns: /run/netns/b}",
            ),
            "pods[1].name: pod default/a is listed twice: pods[0] has this name too",
        ),
        case(
            "a network namespace twice, written in two ways",
            pods(
                "- {name: default/a, netns: /run/netns/a}\n- {name: default/b, netns: /run//netns/./a}",
            ),
            "pods[1].netns: pod default/b: /run//netns/./a is the network namespace of pod default/a already",
        ),
        case(
            "an empty path",
            pods("- {name: default/a, netns: \"\"}"),
            "pods[0].netns: pod default/a: netns is empty: expected the file of its network namespace, such \
             as /run/netns/client",
        ),
        case(
            "a relative path",
            pods("- {name: default/a, netns: netns/a}"),
            "pods[0].netns: pod default/a: netns \"netns/a\" is not an absolute path without `..`",
        ),
        case(
            "a path that climbs",
            pods("- {name: default/a, netns: /run/netns/../a}"),
            "pods[0].netns: pod default/a: netns \"/run/netns/../a\" is not an absolute path without `..`",
        ),
        case(
            "a sidecar of root",
            pods("- {name: default/a, netns: /run/netns/a, proxyGID: 0}"),
            "pods[0].proxyGID: pod default/a: the sidecar cannot run as 0: expected 1 to 4294967294",
        ),
        case(
            "a bad annotation of the second pod",
            pods(
                "- {name: default/a, netns: /run/netns/a}\n- {name: default/b, netns: /run/netns/b, \
                 annotations: {traffic.sidecar.istio.io/excludeOutboundPorts: \"80, 80x\"}}",
            ),
            "pods[1].annotations[\"traffic.sidecar.istio.io/excludeOutboundPorts\"]: pod default/b: \
             annotation traffic.sidecar.istio.io/excludeOutboundPorts: \"80x\" is no port: expected a number \
             from 0 to 65535",
        ),
    ];

    for Case {
        name,
        document,
        error,
    } in cases
    {
        assert_eq!(parse(&document), Err(error.to_owned()), "{name}");
    }
}

#[test]
fn refuses_what_is_too_large_or_no_text() {
    let large = vec![b'#'; MAX_DOCUMENT_BYTES + 1];
    let error = NodeConfigError::TooLarge {
        size_bytes: MAX_DOCUMENT_BYTES + 1,
    };
    assert_eq!(NodeConfig::parse(&large), Err(error));
    let error = NodeConfigError::NotUtf8 { offset_bytes: 1 };
    assert_eq!(NodeConfig::parse(b"a\xff"), Err(error));
}

#[test]
fn reads_the_document_with_its_defaults() {
    let document = format!(
        "{HEAD}pods:\n- name: default/b.example\n  netns: /run//netns/b\n- name: default/a\n  netns: /run/netns/a\n  \
         proxyUID: 2000\n  proxyGID: 3000\n  annotations: {{example.com/other: \"yes\"}}\n"
    );
    let config = parse(&document).expect("the document is good");

    let names: Vec<&str> = config.pods.keys().map(PodName::as_str).collect();
    assert_eq!(names, ["default/a", "default/b.example"]);
    let ids = |pod: &Pod| (pod.proxy_uid, pod.proxy_gid);
    let pods: Vec<&Pod> = config.pods.values().collect();
    assert_eq!(
        pods.iter().map(|pod| ids(pod)).collect::<Vec<_>>(),
        [(2000, 3000), (1337, 1337)]
    );
    assert_eq!(pods[1].netns, Path::new("/run/netns/b"));
    assert_eq!(
        parse(&format!("{HEAD}pods: []\n")),
        Ok(NodeConfig::default())
    );
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table, one case after the other")]
fn reads_port_and_range_annotations_as_istio_does() {
    struct Case {
        name: &'static str,
        annotations: &'static [(&'static str, &'static str)],
        expected: TrafficPolicy,
    }
    let default = || TrafficPolicy {
        exclude_interfaces: BTreeSet::new(),
        virtual_interfaces: BTreeSet::new(),
        exclude_outbound_ports: ports(&[15020]),
        exclude_outbound_ranges: BTreeSet::new(),
        include_outbound_ports: BTreeSet::new(),
        include_outbound_ranges: RangeCapture::All,
        has_loopback_range: false,
        inbound_ports: PortCapture::AllBut(ports(&[15020, 15021, 15090])),
        dns: DnsCapture::Unspecified,
        ipv6: Ipv6Capture::WithAddress,
        app_acceleration: AppAcceleration::Off,
        interception: Interception::Redirect,
        owner_groups: GroupCapture::AllBut(BTreeSet::new()),
        direct_loopback: LoopbackRange::default(),
    };
    let case = |name, annotations, change: fn(&mut TrafficPolicy)| {
        let mut expected = default();
        change(&mut expected);
        Case {
            name,
            annotations,
            expected,
        }
    };
    let cases = [
        case("nothing", &[], |_| ()),
        case("an unknown annotation", &[("example.com/x", "80x")], |_| ()),
        case(
            "an application whose writes may skip TCP",
            &[(ACCELERATE, "writes")],
            |policy| policy.app_acceleration = AppAcceleration::Writes,
        ),
        case(
            "an application whose reads may skip TCP too",
            &[(ACCELERATE, " reads-and-writes ")],
            |policy| policy.app_acceleration = AppAcceleration::ReadsAndWrites,
        ),
        case("the client's own address", &[(MODE, "TPROXY")], |policy| {
            policy.interception = Interception::Tproxy;
        }),
        case(
            "the same by the proxy's configuration",
            &[(CONFIG, "interceptionMode: TPROXY")],
            |policy| {
                policy.interception = Interception::Tproxy;
            },
        ),
        case(
            "the annotation beats the proxy's configuration: REDIRECT",
            &[(CONFIG, "interceptionMode: TPROXY"), (MODE, "REDIRECT")],
            |_| (),
        ),
        case(
            "interfaces left out",
            &[(INTERFACES, " eth1,, net+ ")],
            |policy| policy.exclude_interfaces = ["eth1", "net+"].map(str::to_owned).into(),
        ),
        case(
            "interfaces of virtual machines",
            &[(KUBEVIRT, " k6t0,, k6t1 ")],
            |policy| policy.virtual_interfaces = ["k6t0", "k6t1"].map(str::to_owned).into(),
        ),
        case(
            "interfaces of virtual machines by both names",
            &[(KUBEVIRT, "k6t0"), (REROUTE, "net1")],
            |policy| policy.virtual_interfaces = ["net1".to_owned()].into(),
        ),
        case(
            "interfaces of virtual machines taken back by the newer name",
            &[(KUBEVIRT, "k6t0"), (REROUTE, "")],
            |_| (),
        ),
        case("no interfaces left out", &[(INTERFACES, " , ")], |_| ()),
        case("wildcards", &[(RANGES, " * "), (INBOUND, "*")], |_| ()),
        case("no outbound ranges", &[(RANGES, "")], |policy| {
            policy.include_outbound_ranges = RangeCapture::Only(BTreeSet::new());
        }),
        case("white space is no range", &[(RANGES, " , ")], |policy| {
            policy.include_outbound_ranges = RangeCapture::Only(BTreeSet::new());
        }),
        case(
            "ranges, trimmed, host bits cleared",
            &[(RANGES, " 198.18.1.1/16 ,2001:db8::/32")],
            |policy| {
                policy.include_outbound_ranges =
                    RangeCapture::Only(ranges(&["198.18.0.0/16", "2001:db8::/32"]));
            },
        ),
        case(
            "loopback by a bit that the prefix clears",
            &[(RANGES, "198.18.0.0/15,127.0.0.1/1")],
            |policy| {
                policy.include_outbound_ranges =
                    RangeCapture::Only(ranges(&["0.0.0.0/1", "198.18.0.0/15"]));
                policy.has_loopback_range = true;
            },
        ),
        case(
            "a range that holds loopback but does not start there",
            &[(RANGES, "0.0.0.0/0")],
            |policy| {
                policy.include_outbound_ranges = RangeCapture::Only(ranges(&["0.0.0.0/0"]));
            },
        ),
        case(
            "a dual-stack mesh",
            &[(CONFIG, "proxyMetadata: {ISTIO_DUAL_STACK: \"true\"}")],
            |_| (),
        ),
        case(
            "no dual-stack mesh",
            &[(CONFIG, "proxyMetadata: {ISTIO_DUAL_STACK: \"false\"}")],
            |policy| policy.ipv6 = Ipv6Capture::WithoutIpv4,
        ),
        case(
            "groups left out",
            &[(
                CONFIG,
                "proxyMetadata: {ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE: \"2000, 7\"}",
            )],
            |policy| policy.owner_groups = GroupCapture::AllBut([7, 2000].into()),
        ),
        case(
            "a list of groups makes the other void",
            &[(
                CONFIG,
                "proxyMetadata: {ISTIO_OUTBOUND_OWNER_GROUPS: \"0\", ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE: \"x\"}",
            )],
            |policy| policy.owner_groups = GroupCapture::Only([0].into()),
        ),
        case(
            "an empty list of groups",
            &[(CONFIG, "proxyMetadata: {ISTIO_OUTBOUND_OWNER_GROUPS: \"\"}")],
            |policy| policy.owner_groups = GroupCapture::Only(BTreeSet::new()),
        ),
        case(
            "all groups, said in so many words",
            &[(
                CONFIG,
                "proxyMetadata: {ISTIO_OUTBOUND_OWNER_GROUPS: \"*\", ISTIO_DUAL_STACK: \"\"}",
            )],
            |_| (),
        ),
        case(
            "more of loopback is direct",
            &[(
                CONFIG,
                "proxyMetadata: {ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR: 127.1.2.3/16}",
            )],
            |policy| {
                policy.direct_loopback = LoopbackRange::parse("127.1.0.0/16").expect("a range");
            },
        ),
        case(
            "ranges left out",
            &[(
                "traffic.sidecar.istio.io/excludeOutboundIPRanges",
                "198.19.0.1/32",
            )],
            |policy| {
                policy.exclude_outbound_ranges = ranges(&["198.19.0.1/32"]);
            },
        ),
        case(
            "ports taken",
            &[("traffic.sidecar.istio.io/includeOutboundPorts", ", 9300")],
            |policy| {
                policy.include_outbound_ports = ports(&[9300]);
            },
        ),
        case(
            "ports left out replace the default",
            &[(EXCLUDED, "3306,3306, 080")],
            |policy| {
                policy.exclude_outbound_ports = ports(&[80, 3306]);
            },
        ),
        case("no ports left out", &[(EXCLUDED, "")], |policy| {
            policy.exclude_outbound_ports = BTreeSet::new();
        }),
        case("no inbound ports", &[(INBOUND, "")], |policy| {
            policy.inbound_ports = PortCapture::Only(BTreeSet::new());
        }),
        case(
            "an inbound list ignores exclusions",
            &[(INBOUND, "8080"), (NOT_INBOUND, "8080")],
            |policy| {
                policy.inbound_ports = PortCapture::Only(ports(&[8080]));
            },
        ),
        case(
            "inbound exclusions add to the sidecar's own",
            &[(NOT_INBOUND, ", 9300")],
            |policy| {
                policy.inbound_ports = PortCapture::AllBut(ports(&[9300, 15020, 15021, 15090]));
            },
        ),
        case("the status port", &[(STATUS, " 15099 ")], |policy| {
            policy.inbound_ports = PortCapture::AllBut(ports(&[15020, 15021, 15090, 15099]));
        }),
        case("no status port", &[(STATUS, "0")], |_| ()),
        case("a mode that is the default", &[(MODE, "REDIRECT")], |_| ()),
        case(
            "a proxy configuration of no interest",
            &[(CONFIG, "concurrency: 2\n")],
            |_| (),
        ),
    ];

    for Case {
        name,
        annotations,
        expected,
    } in cases
    {
        let parsed = parse_annotations(&map(annotations), &DnsSettings::default());
        assert_eq!(
            parsed,
            Ok((Capture::Accelerated(expected), Vec::new())),
            "{name}"
        );
    }
}

#[test]
fn leaves_alone_what_it_would_capture_wrongly() {
    struct Case {
        name: &'static str,
        annotations: &'static [(&'static str, &'static str)],
        is_accelerated: bool,
        noticed: &'static [&'static str],
    }
    let cases = [
        Case {
            name: "NONE",
            annotations: &[(MODE, "NONE")],
            is_accelerated: false,
            noticed: &[],
        },
        Case {
            name: "NONE by the proxy's configuration",
            annotations: &[(CONFIG, "interceptionMode: NONE")],
            is_accelerated: false,
            noticed: &[],
        },
        Case {
            name: "the annotation beats the proxy's configuration",
            annotations: &[(CONFIG, "interceptionMode: NONE"), (MODE, "REDIRECT")],
            is_accelerated: true,
            noticed: &[],
        },
        Case {
            name: "owner groups by name",
            annotations: &[(
                CONFIG,
                "proxyMetadata: {ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE: \"2000,java\"}",
            )],
            is_accelerated: false,
            noticed: &[CONFIG],
        },
        Case {
            name: "owner groups in octal",
            annotations: &[(
                CONFIG,
                "proxyMetadata: {ISTIO_OUTBOUND_OWNER_GROUPS: \"010\"}",
            )],
            is_accelerated: false,
            noticed: &[CONFIG],
        },
        Case {
            name: "virtual machines",
            annotations: &[(KUBEVIRT, "k6t-0")],
            is_accelerated: true,
            noticed: &[],
        },
        Case {
            name: "virtual machines in TPROXY mode",
            annotations: &[(REROUTE, "k6t-0"), (MODE, "TPROXY")],
            is_accelerated: false,
            noticed: &[MODE],
        },
        Case {
            name: "ambient",
            annotations: &[("ambient.istio.io/redirection", "enabled")],
            is_accelerated: false,
            noticed: &["ambient.istio.io/redirection"],
        },
    ];

    for Case {
        name,
        annotations,
        is_accelerated,
        noticed,
    } in cases
    {
        let (capture, notices) =
            parse_annotations(&map(annotations), &DnsSettings::default()).expect(name);
        assert_eq!(capture != Capture::LeftAlone, is_accelerated, "{name}");
        let names: Vec<&str> = notices.iter().map(|notice| notice.annotation).collect();
        assert_eq!(names, noticed, "{name}");
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table, one case after the other")]
fn refuses_bad_annotations() {
    struct Case {
        annotation: &'static str,
        value: &'static str,
        error: &'static str,
    }
    let no_port = "is no port: expected a number from 0 to 65535";
    let cases = [
        Case {
            annotation: EXCLUDED,
            value: "80,http",
            error: "\"http\" is no port",
        },
        Case {
            annotation: EXCLUDED,
            value: "65536",
            error: no_port,
        },
        Case {
            annotation: EXCLUDED,
            value: "+80",
            error: no_port,
        },
        Case {
            annotation: EXCLUDED,
            value: "80-90",
            error: no_port,
        },
        Case {
            annotation: EXCLUDED,
            value: "*",
            error: no_port,
        },
        Case {
            annotation: NOT_INBOUND,
            value: "*",
            error: no_port,
        },
        Case {
            annotation: INBOUND,
            value: "8080,*",
            error: no_port,
        },
        Case {
            annotation: STATUS,
            value: "",
            error: no_port,
        },
        Case {
            annotation: RANGES,
            value: "198.18.0.1",
            error: "the prefix length is missing",
        },
        Case {
            annotation: RANGES,
            value: "198.18.0.0/15,*",
            error: "\"*\" is no IP range",
        },
        Case {
            annotation: "traffic.sidecar.istio.io/excludeOutboundIPRanges",
            value: "*",
            error: "\"*\" is no IP range",
        },
        Case {
            annotation: MODE,
            value: "redirect",
            error: "expected REDIRECT, TPROXY or NONE",
        },
        Case {
            annotation: CONFIG,
            value: "proxyMetadata: {ISTIO_DUAL_STACK: \"yes\"}",
            error: "ISTIO_DUAL_STACK is \"yes\": expected \"true\" or \"false\"",
        },
        Case {
            annotation: CONFIG,
            value: "proxyMetadata: {ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR: 127.0.0.0/7}",
            error: "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR is \"127.0.0.0/7\": it is not within 127.0.0.0/8",
        },
        Case {
            annotation: CONFIG,
            value: "interceptionMode: REDIRCT",
            error: "expected REDIRECT, TPROXY or NONE",
        },
        Case {
            annotation: ACCELERATE,
            value: "reads",
            error: "\"reads\" is unknown: expected off, writes or reads-and-writes",
        },
        Case {
            annotation: CONFIG,
            value: "[",
            error: "is no YAML of Istio's ProxyConfig",
        },
    ];

    for Case {
        annotation,
        value,
        error,
    } in cases
    {
        let parsed = parse_annotations(&map(&[(annotation, value)]), &DnsSettings::default());
        let message = parsed.expect_err(value).to_string();
        assert!(
            message.contains(error),
            "{annotation}: {value:?}: {message}"
        );
        assert!(
            message.contains(annotation),
            "{annotation}: {value:?}: {message}"
        );
    }
    // An exclusion that a list makes void is read nevertheless.
    assert!(
        parse_annotations(
            &map(&[(INBOUND, "80"), (NOT_INBOUND, "x")]),
            &DnsSettings::default()
        )
        .is_err()
    );
}

const ACCELERATE: &str = "isthmus.io/accelerate-application";
const CONFIG: &str = "proxy.istio.io/config";
const KUBEVIRT: &str = "traffic.sidecar.istio.io/kubevirtInterfaces";
const REROUTE: &str = "istio.io/reroute-virtual-interfaces";
const INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
const EXCLUDED: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
const INBOUND: &str = "traffic.sidecar.istio.io/includeInboundPorts";
const MODE: &str = "sidecar.istio.io/interceptionMode";
const NOT_INBOUND: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
const RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
const STATUS: &str = "status.sidecar.istio.io/port";

fn parse(text: &str) -> Result<NodeConfig, String> {
    NodeConfig::parse(text.as_bytes()).map_err(|error| error.to_string())
}

fn map(annotations: &[(&str, &str)]) -> BTreeMap<String, String> {
    annotations
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn ports(ports: &[u16]) -> BTreeSet<u16> {
    ports.iter().copied().collect()
}

fn ranges(ranges: &[&str]) -> BTreeSet<IpRange> {
    ranges
        .iter()
        .map(|range| IpRange::parse(range).expect(range))
        .collect()
}
