//! The redirection rules that Istio installs in a pod, as text for `iptables-restore`, and their counters.
//!
//! [`render_rules`] is what Istio installs for a sidecar in REDIRECT mode on IPv4, rule for rule, which a test proves with
//! Istio's own code; the ids in the comments (I3, O1 …) are those of `tests/redirection_table.rs`. The lab, the demo and
//! the benchmark use it as the baseline, and below the accelerator: they need no Go.

use std::fmt::Write;

use anyhow::{Context, Result};

use crate::netns::Netns;
use crate::shell;

/// Port of the sidecar that takes what leaves the pod.
pub const OUTBOUND_PORT: u16 = 15001;
/// Port of the sidecar that takes what arrives at the pod.
pub const INBOUND_PORT: u16 = 15006;
/// Port of the mesh's tunnel, which is never captured.
const TUNNEL_PORT: u16 = 15008;

/// What is captured, in the words of Istio's annotations.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Capture {
    /// Ports that arrive at the application directly; only with [`Ports::All`] inbound.
    pub exclude_inbound_ports: Vec<u16>,
    /// Destination ports that leave directly, whoever dials.
    pub exclude_outbound_ports: Vec<u16>,
    /// Destinations that leave directly.
    pub exclude_outbound_ranges: Vec<String>,
    /// Ports whose arriving connections go to the sidecar.
    pub include_inbound_ports: Ports,
    /// Destination ports that are captured wherever they lead.
    pub include_outbound_ports: Vec<u16>,
    /// Destinations that are captured.
    pub include_outbound_ranges: Ranges,
    /// Group of the sidecar.
    pub proxy_gid: u32,
    /// User of the sidecar.
    pub proxy_uid: u32,
}

/// A set of ports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ports {
    /// `*`
    All,
    /// A list, which may be empty.
    Listed(Vec<u16>),
}

/// A set of destinations.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ranges {
    /// `*`
    All,
    /// CIDR ranges, which may be none.
    Listed(Vec<String>),
}

impl Default for Capture {
    /// What the injector asks for when a pod has no annotation.
    fn default() -> Self {
        Self {
            exclude_inbound_ports: vec![15090, 15021, 15020],
            exclude_outbound_ports: Vec::new(),
            exclude_outbound_ranges: Vec::new(),
            include_inbound_ports: Ports::All,
            include_outbound_ports: Vec::new(),
            include_outbound_ranges: Ranges::All,
            proxy_gid: 1337,
            proxy_uid: 1337,
        }
    }
}

/// Renders the `nat` table, for `iptables-restore`.
pub fn render_rules(capture: &Capture) -> String {
    let mut rules = Rules::default();
    if capture.include_inbound_ports != Ports::Listed(Vec::new()) {
        rules.add("PREROUTING", format_args!("-p tcp -j ISTIO_INBOUND"));
    }
    rules.add("OUTPUT", format_args!("-j ISTIO_OUTPUT"));
    rules.add(
        "ISTIO_REDIRECT",
        format_args!("-p tcp -j REDIRECT --to-ports {OUTBOUND_PORT}"),
    );
    rules.add(
        "ISTIO_IN_REDIRECT",
        format_args!("-p tcp -j REDIRECT --to-ports {INBOUND_PORT}"),
    );
    add_inbound(&mut rules, capture);
    add_outbound_exemptions(&mut rules, capture);
    add_outbound_destinations(&mut rules, capture);

    let chains = [
        "ISTIO_INBOUND",
        "ISTIO_REDIRECT",
        "ISTIO_IN_REDIRECT",
        "ISTIO_OUTPUT",
    ];
    let declared: String = chains.map(|chain| format!(":{chain} - [0:0]\n")).concat();
    format!("*nat\n{declared}{}COMMIT\n", rules.text)
}

#[derive(Default)]
struct Rules {
    text: String,
}

impl Rules {
    fn add(&mut self, chain: &str, rule: std::fmt::Arguments<'_>) {
        writeln!(self.text, "-A {chain} {rule}").expect("writing to a string succeeds");
    }
}

fn add_inbound(rules: &mut Rules, capture: &Capture) {
    let chain = "ISTIO_INBOUND";
    // I3
    rules.add(
        chain,
        format_args!("-p tcp --dport {TUNNEL_PORT} -j RETURN"),
    );
    match &capture.include_inbound_ports {
        Ports::All => {
            // I4, I5
            for port in &capture.exclude_inbound_ports {
                rules.add(chain, format_args!("-p tcp --dport {port} -j RETURN"));
            }
            rules.add(chain, format_args!("-p tcp -j ISTIO_IN_REDIRECT"));
        }
        // I6, I7
        Ports::Listed(ports) => {
            for port in ports {
                rules.add(
                    chain,
                    format_args!("-p tcp --dport {port} -j ISTIO_IN_REDIRECT"),
                );
            }
        }
    }
}

fn add_outbound_exemptions(rules: &mut Rules, capture: &Capture) {
    let chain = "ISTIO_OUTPUT";
    // O1
    for port in &capture.exclude_outbound_ports {
        rules.add(chain, format_args!("-p tcp --dport {port} -j RETURN"));
        rules.add(chain, format_args!("-p udp --dport {port} -j RETURN"));
    }
    // O2
    rules.add(chain, format_args!("-o lo -s 127.0.0.6/32 -j RETURN"));
    // O3-O5 for the user, O6-O8 for the group
    let owners = [
        format!("--uid-owner {}", capture.proxy_uid),
        format!("--gid-owner {}", capture.proxy_gid),
    ];
    for owner in owners {
        rules.add(
            chain,
            format_args!("-o lo ! -d 127.0.0.1/32 -p tcp ! --dport {TUNNEL_PORT} -m owner {owner} -j ISTIO_IN_REDIRECT"),
        );
        if !includes_loopback(&capture.include_outbound_ranges) {
            rules.add(chain, format_args!("-o lo -m owner ! {owner} -j RETURN"));
        }
        rules.add(chain, format_args!("-m owner {owner} -j RETURN"));
    }
    // O10
    rules.add(chain, format_args!("-d 127.0.0.1/32 -j RETURN"));
}

fn add_outbound_destinations(rules: &mut Rules, capture: &Capture) {
    let chain = "ISTIO_OUTPUT";
    // O11
    for range in &capture.exclude_outbound_ranges {
        rules.add(chain, format_args!("-d {range} -j RETURN"));
    }
    // O12
    for port in &capture.include_outbound_ports {
        rules.add(
            chain,
            format_args!("-p tcp --dport {port} -j ISTIO_REDIRECT"),
        );
    }
    // O13
    match &capture.include_outbound_ranges {
        Ranges::All => rules.add(chain, format_args!("-j ISTIO_REDIRECT")),
        Ranges::Listed(ranges) => {
            for range in ranges {
                rules.add(chain, format_args!("-d {range} -j ISTIO_REDIRECT"));
            }
        }
    }
}

fn includes_loopback(ranges: &Ranges) -> bool {
    match ranges {
        Ranges::All => false,
        Ranges::Listed(ranges) => ranges.iter().any(|range| range.starts_with("127.")),
    }
}

/// Installs the rules in a pod's namespace.
///
/// # Errors
///
/// When iptables refuses them.
pub fn install(netns: &Netns, capture: &Capture) -> Result<()> {
    shell::feed(
        netns.command("iptables-restore").arg("--wait"),
        &render_rules(capture),
    )
    .map(drop)
}

/// A rule of the `nat` table as the kernel has it, with how often it matched.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RuleCount {
    /// Chain that the rule is in.
    pub chain: String,
    /// Packets that matched: of a connection only the first, in this table.
    pub packets: u64,
    /// Rule as iptables renders it, without the chain.
    pub rule: String,
}

/// Reads the rules of a namespace with their counters.
///
/// # Errors
///
/// When iptables fails or prints something else.
pub fn counts(netns: &Netns) -> Result<Vec<RuleCount>> {
    let text =
        shell::capture(
            netns
                .command("iptables-save")
                .args(["--counters", "--table", "nat"]),
        )?;
    parse_counts(&text)
}

/// How many connections went to the sidecar because they left the pod.
///
/// # Errors
///
/// As [`counts`].
pub fn outbound_redirects(netns: &Netns) -> Result<u64> {
    redirects(netns, "ISTIO_REDIRECT")
}

/// How many connections went to the sidecar because they arrived at the pod, from another or from its own sidecar.
///
/// # Errors
///
/// As [`counts`].
pub fn inbound_redirects(netns: &Netns) -> Result<u64> {
    redirects(netns, "ISTIO_IN_REDIRECT")
}

fn redirects(netns: &Netns, chain: &str) -> Result<u64> {
    let counts = counts(netns)?;
    Ok(counts
        .iter()
        .filter(|count| count.chain == chain)
        .map(|count| count.packets)
        .sum())
}

fn parse_counts(text: &str) -> Result<Vec<RuleCount>> {
    let rules = text.lines().filter(|line| line.starts_with('['));
    rules
        .map(|line| {
            let parse = || {
                let (counters, rest) = line.strip_prefix('[')?.split_once("] -A ")?;
                let (packets, _bytes) = counters.split_once(':')?;
                let (chain, rule) = rest.split_once(' ')?;
                Some(RuleCount {
                    chain: chain.into(),
                    packets: packets.parse().ok()?,
                    rule: rule.into(),
                })
            };
            parse().with_context(|| format!("iptables-save printed {line:?}"))
        })
        .collect()
}

#[cfg(test)]
mod tests;
