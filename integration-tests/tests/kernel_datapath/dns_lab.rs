//! A pod with an agent that answers DNS, and every name server at the other end of its cable.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
};

use isthmus_accel_abi::{CidrKey, Counter, PodConfig, PodFlags, PortKey, RuleList, v4_mapped};
use isthmus_accel_core::MapOp;
use isthmus_accel_datapath::Datapath as _;
use isthmus_integration_tests::istio::{IstioIptables, PodSettings, Rules};

use crate::{
    fixture::{APP, Fixture, PROXY, Pod},
    nameserver::NameServer,
};

/// Address in the answers of the agent …
pub(crate) const AGENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// … and in those of every other server.
pub(crate) const UPSTREAM: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Servers of the pod's resolv.conf …
pub(crate) const SERVERS: [&str; 4] = ["198.19.0.53", "198.19.0.54", "fd00:53::1", "fd00:53::2"];
/// … and one of each family that is not in it.
pub(crate) const OTHERS: [&str; 2] = ["8.8.8.8", "2001:4860:4860::8888"];

const POD_V6: &str = "fd00:18::1";

/// Who redirects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mode {
    /// Istio's own rules.
    Iptables,
    /// The programs.
    Accelerator,
    /// The programs over the rules.
    Both,
}

/// What the pod asks for. None of them captures anything but DNS.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Capture {
    /// No DNS either.
    Off,
    /// The servers of resolv.conf.
    Resolvers,
    /// The same, with port 53 excluded.
    ResolversButPort53,
    /// Every server.
    All,
}

impl Capture {
    fn flags(self) -> PodFlags {
        let dns = match self {
            Self::Off => PodFlags::NONE,
            Self::Resolvers | Self::ResolversButPort53 => PodFlags::DNS,
            Self::All => PodFlags::DNS.with(PodFlags::DNS_ALL),
        };
        PodFlags::IPV6.with(dns)
    }

    fn settings(self) -> PodSettings {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let mut annotations = vec![pair("traffic.sidecar.istio.io/includeOutboundIPRanges", "")];
        if self == Self::ResolversButPort53 {
            annotations.push(pair("traffic.sidecar.istio.io/excludeOutboundPorts", "53"));
        }
        let mut metadata = vec![pair("ISTIO_DUAL_STACK", "true")];
        if self != Self::Off {
            metadata.push(pair("ISTIO_META_DNS_CAPTURE", "true"));
        }
        if self == Self::All {
            metadata.push(pair("CAPTURE_ALL_DNS", "true"));
        }
        PodSettings {
            annotations: annotations.into_iter().collect(),
            name_servers: SERVERS.map(ip).into(),
            proxy_metadata: metadata.into_iter().collect(),
            ..PodSettings::default()
        }
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn dns(addr: &str) -> SocketAddr {
    SocketAddr::new(ip(addr), 53)
}

/// The pod, who redirects in it, and who serves.
#[derive(Debug)]
pub(crate) struct Lab {
    agents: Vec<NameServer>,
    fixture: Option<Fixture>,
    _servers: Vec<NameServer>,
    pub(crate) pod: Pod,
    _elsewhere: Pod,
}

impl Lab {
    pub(crate) fn new(mode: Mode, capture: Capture) -> Self {
        let (pod, elsewhere) = Pod::pair();
        for (end, addr) in [(&pod, POD_V6), (&elsewhere, "fd00:18::2")] {
            end.ip(&["addr", "add", &format!("{addr}/64"), "dev", "eth0", "nodad"]);
            end.ip(&["-6", "route", "add", "default", "dev", "eth0"]);
        }
        let serve = |addr: &&str| {
            elsewhere.ip(&["addr", "add", addr, "dev", "eth0", "nodad"]);
            NameServer::start(&elsewhere, 0, dns(addr), UPSTREAM)
        };
        let servers = SERVERS.iter().chain(&OTHERS).map(serve).collect();

        if mode != Mode::Accelerator {
            let mut oracle = IstioIptables::start().expect("`cargo xtask setup` has built it");
            let config = capture.settings().istio_config();
            install(
                &pod,
                &oracle.rules(&config).expect("Istio takes the settings"),
            );
        }
        let mut lab = Self {
            agents: Vec::new(),
            fixture: (mode != Mode::Iptables).then(Fixture::load),
            _servers: servers,
            pod,
            _elsewhere: elsewhere,
        };
        lab.start_agent();
        if lab.fixture.is_some() {
            lab.load(capture);
        }
        lab
    }

    fn load(&mut self, capture: Capture) {
        let netns = self.pod.cookie;
        for server in SERVERS {
            let key = CidrKey::lookup(netns, RuleList::DNS_SERVERS, bytes(ip(server)));
            self.apply(MapOp::PutCidr(key));
        }
        if capture == Capture::ResolversButPort53 {
            let port = 53_u16.to_be_bytes();
            let key = PortKey::new(netns, RuleList::EXCLUDE_OUTBOUND, port);
            self.apply(MapOp::PutPort(key));
        }
        for addr in [IpAddr::V4(self.pod.addr), ip(POD_V6)] {
            self.apply(MapOp::PutAddr {
                addr: bytes(addr),
                netns_cookie: netns,
            });
        }
        self.set_flags(capture.flags());
    }

    /// Governs the pod by these flags from here on.
    pub(crate) fn set_flags(&mut self, flags: PodFlags) {
        self.apply(MapOp::PutPod {
            netns_cookie: self.pod.cookie,
            config: PodConfig {
                flags,
                source_v4: self.pod.addr.octets(),
                source_v6: bytes(ip(POD_V6)),
                ..PodConfig::istio_default()
            },
        });
    }

    pub(crate) fn apply(&mut self, op: MapOp) {
        let fixture = self.fixture.as_mut().expect("the programs are loaded");
        fixture.apply(op);
    }

    pub(crate) fn counter(&self, counter: Counter) -> u64 {
        let fixture = self.fixture.as_ref().expect("the programs are loaded");
        let rows = fixture.datapath.counters().expect("counters can be read");
        let row = rows.iter().find(|row| row.counter == counter);
        row.expect("every counter has a row").count
    }

    pub(crate) fn start_agent(&mut self) {
        let start = |addr| {
            let addr = SocketAddr::new(ip(addr), 15_053);
            NameServer::start(&self.pod, PROXY, addr, AGENT)
        };
        self.agents = ["127.0.0.1", "::1"].map(start).into();
    }

    pub(crate) fn stop_agent(&mut self) {
        self.agents.clear();
    }

    /// The pod's own address of the family of `peer`.
    pub(crate) fn pod_addr(&self, peer: SocketAddr) -> IpAddr {
        if peer.is_ipv4() {
            self.pod.addr.into()
        } else {
            ip(POD_V6)
        }
    }

    /// Runs `work` as the application.
    pub(crate) fn as_app<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.pod.run_as(APP, work)
    }
}

fn bytes(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => v4_mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn install(pod: &Pod, rules: &Rules) {
    let families = [
        ("iptables-restore", &rules.v4),
        ("ip6tables-restore", &rules.v6),
    ];
    for (program, text) in families {
        let text = text.clone();
        let status = pod.run_as(0, move || {
            let mut child = Command::new(program)
                .args(["--noflush", "--wait"])
                .stdin(Stdio::piped())
                .spawn()?;
            child
                .stdin
                .take()
                .expect("its input is a pipe")
                .write_all(text.as_bytes())?;
            child.wait()
        });
        let status = status.expect("iptables is installed (`cargo xtask setup`)");
        assert!(status.success(), "{program}: {status}");
    }
}
