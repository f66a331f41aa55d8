//! Fields, metadata, and which of them wins.

use std::collections::BTreeMap;

use super::*;
use crate::node_config::{
    Capture, NodeConfig, NodeConfigError, PodName, annotations::parse_annotations,
};

#[test]
fn the_nearest_word_decides() {
    use DnsMetadata::{All, Off, On, Resolvers, Unspecified};
    let server: IpAddr = "10.96.0.10".parse().expect("an address");
    let settings = |own, of_all, servers: &[IpAddr]| DnsSettings {
        own,
        of_all,
        servers: servers.iter().copied().collect(),
    };
    let one = &[server][..];
    let (no_one, everyone) = (Some(DnsMode::None), Some(DnsMode::All));
    let listed = Some(DnsMode::Resolvers);
    let to_one = || DnsCapture::Resolvers([server].into());

    let cases = [
        (
            "nothing",
            settings(None, None, &[]),
            Unspecified,
            DnsCapture::Unspecified,
        ),
        (
            "servers alone",
            settings(None, None, one),
            Unspecified,
            DnsCapture::Unspecified,
        ),
        (
            "mesh: none",
            settings(None, no_one, one),
            Unspecified,
            DnsCapture::Off,
        ),
        (
            "mesh: all",
            settings(None, everyone, one),
            Unspecified,
            DnsCapture::All,
        ),
        (
            "mesh: resolvers",
            settings(None, listed, one),
            Unspecified,
            to_one(),
        ),
        (
            "pod beats mesh",
            settings(no_one, everyone, one),
            Unspecified,
            DnsCapture::Off,
        ),
        (
            "pod beats metadata",
            settings(no_one, None, one),
            All,
            DnsCapture::Off,
        ),
        (
            "metadata: off",
            settings(None, everyone, one),
            Off,
            DnsCapture::Off,
        ),
        (
            "metadata: on, as the mesh",
            settings(None, everyone, one),
            On,
            DnsCapture::All,
        ),
        ("metadata: on", settings(None, None, one), On, to_one()),
        (
            "metadata: on, mesh: none",
            settings(None, no_one, one),
            On,
            to_one(),
        ),
        (
            "metadata: resolvers",
            settings(None, everyone, one),
            Resolvers,
            to_one(),
        ),
        (
            "metadata: all",
            settings(None, no_one, one),
            All,
            DnsCapture::All,
        ),
        (
            "metadata, no servers",
            settings(None, None, &[]),
            On,
            DnsCapture::Unspecified,
        ),
    ];
    for (name, settings, metadata, expected) in cases {
        assert_eq!(settings.capture(metadata), expected, "{name}");
    }
}

#[test]
fn a_server_is_the_address_of_a_host() {
    let parse = |item: &str| parse_server(item).map(|addr| addr.to_string());
    assert_eq!(parse("10.0.0.1").as_deref(), Some("10.0.0.1"));
    assert_eq!(
        parse("::ffff:10.0.0.1").as_deref(),
        Some("10.0.0.1"),
        "canonical"
    );
    assert_eq!(parse("fd00::1").as_deref(), Some("fd00::1"));
    for bad in [
        "dns.example",
        "10.0.0.1:53",
        "0.0.0.0",
        "::",
        "fe80::1%eth0",
        "224.0.0.251",
        "",
    ] {
        assert_eq!(parse(bad), None, "{bad:?}");
    }
}

#[test]
fn reads_whose_dns_is_captured() {
    let dns = |fields: &str, pod: &str| -> Result<DnsCapture, NodeConfigError> {
        let head = "apiVersion: isthmus.io/v1alpha1\nkind: NodeConfig\n";
        let document =
            format!("{head}{fields}pods:\n- {{name: default/a, netns: /run/netns/a{pod}}}\n");
        let config = NodeConfig::parse(document.as_bytes())?;
        match &config.pods[&PodName::parse("default/a").expect("a name")].capture {
            Capture::Accelerated(policy) => Ok(policy.dns.clone()),
            Capture::LeftAlone => panic!("{document}"),
        }
    };
    let resolvers = |addrs: &[&str]| {
        let addrs = addrs.iter().map(|addr| addr.parse().expect("an address"));
        Ok(DnsCapture::Resolvers(addrs.collect()))
    };
    let refused = |fields: &str, pod: &str| {
        let error = dns(fields, pod).expect_err("it is refused");
        error.to_string()
    };

    assert_eq!(dns("", ""), Ok(DnsCapture::Unspecified));
    assert_eq!(dns("dnsCapture: all\n", ""), Ok(DnsCapture::All));
    assert_eq!(
        dns("dnsCapture: all\n", ", dnsCapture: none"),
        Ok(DnsCapture::Off)
    );
    let mesh = "dnsCapture: resolvers\ndnsServers: [10.96.0.10, \"fd00::a\"]\n";
    assert_eq!(dns(mesh, ""), resolvers(&["10.96.0.10", "fd00::a"]));
    assert_eq!(
        dns(mesh, ", dnsServers: [10.0.0.1]"),
        resolvers(&["10.0.0.1"])
    );
    let metadata = ", annotations: {proxy.istio.io/config: \"proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true'}\"}";
    assert_eq!(
        dns("dnsServers: [10.0.0.1]\n", metadata),
        resolvers(&["10.0.0.1"])
    );

    assert_eq!(
        refused("dnsServers: [10.0.0.1, kube-dns]\n", ""),
        "dnsServers[1]: \"kube-dns\" is no name server: expected the IP address of a host, such as 10.96.0.10"
    );
    assert_eq!(
        refused("", ", dnsServers: [\"10.0.0.1:53\"]"),
        "pods[0].dnsServers[0]: \"10.0.0.1:53\" is no name server: expected the IP address of a host, such as \
         10.96.0.10"
    );
    assert_eq!(
        refused("dnsCapture: resolvers\n", ""),
        "pods[0].dnsServers: pod default/a: dnsCapture is resolvers, and no dnsServers are given: list those of \
         its /etc/resolv.conf"
    );
    assert!(refused("dnsCapture: some\n", "").contains("expected one of none, resolvers, all"));
}

#[test]
fn metadata_says_whether_dns_is_captured_but_not_for_whom() {
    let parse = |metadata: &str, dns: &DnsSettings| {
        let config = format!("proxyMetadata: {{{metadata}}}");
        let annotations = BTreeMap::from([("proxy.istio.io/config".to_owned(), config)]);
        parse_annotations(&annotations, dns)
    };
    let dns_of = |metadata: &str, dns: &DnsSettings| match parse(metadata, dns) {
        Ok((Capture::Accelerated(policy), notices)) => (policy.dns, notices.len()),
        other => panic!("{metadata}: {other:?}"),
    };
    let unknown = DnsSettings::default();
    let servers: BTreeSet<IpAddr> = ["10.0.0.1".parse().expect("an address")].into();
    let known = DnsSettings {
        servers: servers.clone(),
        ..DnsSettings::default()
    };
    let on = "ISTIO_META_DNS_CAPTURE: \"true\"";
    let all = "ISTIO_META_DNS_CAPTURE: \"1\", CAPTURE_ALL_DNS: \"true\"";
    assert_eq!(dns_of(on, &known), (DnsCapture::Resolvers(servers), 0));
    assert_eq!(
        dns_of(on, &unknown),
        (DnsCapture::Unspecified, 1),
        "with a notice"
    );
    assert_eq!(dns_of(all, &unknown), (DnsCapture::All, 0));
    let off = "ISTIO_META_DNS_CAPTURE: \"false\", CAPTURE_ALL_DNS: \"true\"";
    assert_eq!(dns_of(off, &known), (DnsCapture::Off, 0));
    assert_eq!(
        dns_of("CAPTURE_ALL_DNS: \"true\"", &known),
        (DnsCapture::Unspecified, 0)
    );
    let bad = parse("ISTIO_META_DNS_CAPTURE: \"yes\"", &known).expect_err("no boolean");
    assert!(
        bad.to_string()
            .contains("ISTIO_META_DNS_CAPTURE is \"yes\""),
        "{bad}"
    );
}
