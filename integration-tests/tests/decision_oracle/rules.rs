//! An interpreter of `iptables-restore` text: chains, matches, jumps.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The first packet of a TCP connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) is_on_loopback: bool,
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    pub(super) port: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// What a table does with it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    Pass,
    Redirect(u16),
}

#[derive(Debug)]
enum Match {
    Tcp,
    Udp,
    OutLoopback,
    Source(Ipv4Addr, u32),
    Destination(Ipv4Addr, u32),
    Port(u16),
    Uid(u32),
    Gid(u32),
}

#[derive(Debug)]
enum Target {
    Return,
    Redirect(u16),
    Chain(String),
}

#[derive(Debug)]
struct Rule {
    // Each with whether it is negated.
    matches: Vec<(bool, Match)>,
    target: Target,
}

/// One table.
#[derive(Debug, Default)]
pub(super) struct Table {
    chains: BTreeMap<String, Vec<Rule>>,
}

impl Table {
    /// Reads a table. Whatever is not understood is a panic: a rule that is skipped proves nothing.
    pub(super) fn parse(text: &str) -> Self {
        let mut table = Self::default();
        for line in text.lines() {
            if let Some(rule) = line.strip_prefix("-A ") {
                let (chain, rule) = rule.split_once(' ').expect("a chain and a rule");
                let chain = table.chains.entry(chain.to_owned()).or_default();
                chain.push(Rule::parse(rule));
            } else {
                assert!(line.starts_with(['*', ':']) || line == "COMMIT", "{line:?}");
            }
        }
        table
    }

    /// Sends a packet through a built-in chain.
    pub(super) fn run(&self, chain: &str, packet: &Packet) -> Outcome {
        self.walk(chain, packet).unwrap_or(Outcome::Pass)
    }

    fn walk(&self, chain: &str, packet: &Packet) -> Option<Outcome> {
        let rules = self.chains.get(chain).map_or(&[][..], Vec::as_slice);
        for rule in rules.iter().filter(|rule| rule.takes(packet)) {
            match &rule.target {
                Target::Return => return None,
                Target::Redirect(port) => return Some(Outcome::Redirect(*port)),
                Target::Chain(next) => {
                    if let Some(outcome) = self.walk(next, packet) {
                        return Some(outcome);
                    }
                }
            }
        }
        None
    }
}

impl Rule {
    fn parse(text: &str) -> Self {
        let mut words = text.split(' ');
        let mut rule = Self {
            matches: Vec::new(),
            target: Target::Return,
        };
        let mut is_negated = false;
        while let Some(word) = words.next() {
            let mut value = || words.next().expect("a value behind each option");
            let found = match word {
                "!" => {
                    is_negated = true;
                    continue;
                }
                // Only names the module whose options follow.
                "-m" => {
                    value();
                    continue;
                }
                "-j" => {
                    rule.target = match value() {
                        "RETURN" => Target::Return,
                        "REDIRECT" => {
                            assert_eq!(words.next(), Some("--to-ports"), "{text}");
                            let port = words.next().and_then(|port| port.parse().ok());
                            Target::Redirect(port.expect("a port"))
                        }
                        chain => Target::Chain(chain.to_owned()),
                    };
                    continue;
                }
                "-p" => match value() {
                    "tcp" => Match::Tcp,
                    "udp" => Match::Udp,
                    other => panic!("protocol {other} in {text:?}"),
                },
                "-o" => {
                    assert_eq!(value(), "lo", "{text}");
                    Match::OutLoopback
                }
                "-s" | "-d" => {
                    let (addr, bits) = value().split_once('/').expect("a range");
                    let addr = addr.parse().expect("an address");
                    let bits = bits.parse().expect("a prefix length");
                    if word == "-s" {
                        Match::Source(addr, bits)
                    } else {
                        Match::Destination(addr, bits)
                    }
                }
                "--dport" => Match::Port(value().parse().expect("a port")),
                "--uid-owner" => Match::Uid(value().parse().expect("a user")),
                "--gid-owner" => Match::Gid(value().parse().expect("a group")),
                other => panic!("{other} in {text:?}"),
            };
            rule.matches.push((is_negated, found));
            is_negated = false;
        }
        rule
    }

    fn takes(&self, packet: &Packet) -> bool {
        let holds = |found: &Match| match *found {
            Match::Tcp => true,
            Match::Udp => false,
            Match::OutLoopback => packet.is_on_loopback,
            Match::Source(base, bits) => is_in(packet.source, base, bits),
            Match::Destination(base, bits) => is_in(packet.destination, base, bits),
            Match::Port(port) => packet.port == port,
            Match::Uid(uid) => packet.uid == uid,
            Match::Gid(gid) => packet.gid == gid,
        };
        self.matches
            .iter()
            .all(|(is_negated, found)| holds(found) != *is_negated)
    }
}

fn is_in(address: Ipv4Addr, base: Ipv4Addr, bits: u32) -> bool {
    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
    address.to_bits() & mask == base.to_bits() & mask
}
