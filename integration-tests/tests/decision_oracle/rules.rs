//! An interpreter of `iptables-restore` text: chains, matches, jumps.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::SplitWhitespace;

/// The first packet of a connection or of an exchange of datagrams.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) protocol: Protocol,
    /// Interface that it leaves or has arrived by.
    pub(super) interface: &'static str,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) port: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

/// What a table does with it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    Pass,
    Redirect(u16),
}

#[derive(Debug)]
enum Match {
    Protocol(Protocol),
    Interface(String),
    Source(IpAddr, u32),
    Destination(IpAddr, u32),
    Ports(Vec<u16>),
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

/// The `nat` table.
#[derive(Debug, Default)]
pub(super) struct Table {
    chains: BTreeMap<String, Vec<Rule>>,
}

impl Table {
    /// Reads the table. Whatever is not understood is a panic: a rule that is skipped proves nothing.
    pub(super) fn parse(text: &str) -> Self {
        let mut table = Self::default();
        let mut name = "";
        for line in text.lines() {
            if let Some(found) = line.strip_prefix('*') {
                name = found.trim();
                // They mark packets and choose their conntrack zone: no destination depends on that.
                assert!(["nat", "mangle", "raw"].contains(&name), "table {name}");
            } else if name == "nat" {
                table.add(line);
            }
        }
        table
    }

    fn add(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("-A") => {
                let chain = self.chain(&mut words);
                chain.push(Rule::parse(words));
            }
            Some("-I") => {
                let chain = self.chain(&mut words);
                let place: usize = number(&mut words);
                chain.insert(place - 1, Rule::parse(words));
            }
            Some(word) => assert!(
                word == "-N" || word == "COMMIT" || word.starts_with(':'),
                "{line:?}"
            ),
            None => {}
        }
    }

    fn chain(&mut self, words: &mut SplitWhitespace<'_>) -> &mut Vec<Rule> {
        let name = words.next().expect("a rule has a chain");
        self.chains.entry(name.to_owned()).or_default()
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
    fn parse(mut words: SplitWhitespace<'_>) -> Self {
        let mut rule = Self {
            matches: Vec::new(),
            target: Target::Return,
        };
        let mut is_negated = false;
        while let Some(word) = words.next() {
            let found = match word {
                "!" => {
                    is_negated = true;
                    continue;
                }
                // Only names the module whose options follow.
                "-m" => {
                    words.next();
                    continue;
                }
                "-j" => {
                    rule.target = Target::parse(&mut words);
                    continue;
                }
                option => Match::parse(option, &mut words),
            };
            rule.matches.push((is_negated, found));
            is_negated = false;
        }
        rule
    }

    fn takes(&self, packet: &Packet) -> bool {
        self.matches
            .iter()
            .all(|(is_negated, found)| found.holds(packet) != *is_negated)
    }
}

impl Target {
    fn parse(words: &mut SplitWhitespace<'_>) -> Self {
        match words.next().expect("a target behind -j") {
            "RETURN" => Self::Return,
            "REDIRECT" => {
                let option = words.next();
                // iptables takes any beginning of an option that is only one option's.
                assert!(
                    matches!(option, Some("--to-ports" | "--to-port")),
                    "{option:?}"
                );
                Self::Redirect(number(words))
            }
            chain => Self::Chain(chain.to_owned()),
        }
    }
}

impl Match {
    fn parse(option: &str, words: &mut SplitWhitespace<'_>) -> Self {
        match option {
            "-p" => Self::Protocol(match words.next() {
                Some("tcp") => Protocol::Tcp,
                Some("udp") => Protocol::Udp,
                other => panic!("protocol {other:?}"),
            }),
            "-i" | "-o" => Self::Interface(words.next().expect("an interface").to_owned()),
            "-s" | "-d" => {
                let range = words.next().expect("a range");
                let (addr, bits) = range.split_once('/').expect("a prefix length");
                let addr = addr.parse().expect("an address");
                let bits = bits.parse().expect("a number");
                if option == "-s" {
                    Self::Source(addr, bits)
                } else {
                    Self::Destination(addr, bits)
                }
            }
            "--dport" => Self::Ports(vec![number(words)]),
            "--dports" => {
                let ports = words.next().expect("ports").split(',');
                Self::Ports(ports.map(|port| port.parse().expect("a port")).collect())
            }
            "--uid-owner" => Self::Uid(number(words)),
            "--gid-owner" => Self::Gid(number(words)),
            other => panic!("option {other}"),
        }
    }

    fn holds(&self, packet: &Packet) -> bool {
        match self {
            Self::Protocol(protocol) => packet.protocol == *protocol,
            Self::Interface(name) => match name.strip_suffix('+') {
                Some(start) => packet.interface.starts_with(start),
                None => packet.interface == name,
            },
            Self::Source(base, bits) => is_in(packet.source, *base, *bits),
            Self::Destination(base, bits) => is_in(packet.destination, *base, *bits),
            Self::Ports(ports) => ports.contains(&packet.port),
            Self::Uid(uid) => packet.uid == *uid,
            Self::Gid(gid) => packet.gid == *gid,
        }
    }
}

fn number<T: std::str::FromStr>(words: &mut SplitWhitespace<'_>) -> T {
    let number = words.next().and_then(|word| word.parse().ok());
    number.unwrap_or_else(|| panic!("a number is missing in front of {words:?}"))
}

// The upper bits of two addresses of one family; those of another family never match.
fn is_in(address: IpAddr, base: IpAddr, bits: u32) -> bool {
    let (address, base, width) = match (address, base) {
        (IpAddr::V4(address), IpAddr::V4(base)) => {
            (address.to_bits().into(), base.to_bits().into(), 32)
        }
        (IpAddr::V6(address), IpAddr::V6(base)) => (address.to_bits(), base.to_bits(), 128),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    };
    let host_bits = width - bits;
    let network = |addr: u128| addr.checked_shr(host_bits).unwrap_or(0);
    network(address) == network(base)
}
