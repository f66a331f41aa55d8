//! The words in which rows are written.

use isthmus_integration_tests::istio::PodSettings;

use crate::dial::{Dial, Protocol};
use crate::fixture::{APP, PROXY};
use crate::net::{ALL, Addr, Family, Place};
use crate::servers::Role;

/// One row of the contract, or one face of it.
#[derive(Debug)]
pub(crate) struct Row {
    /// Its id, and what it says.
    pub(crate) name: &'static str,
    pub(crate) settings: PodSettings,
    pub(crate) dials: Vec<Dial>,
}

/// A row in a pod that says nothing of itself.
pub(crate) fn row(name: &'static str) -> Row {
    Row {
        name,
        settings: PodSettings::default(),
        dials: Vec::new(),
    }
}

impl Row {
    /// With `traffic.sidecar.istio.io/NAME`, or any annotation by its whole name.
    pub(crate) fn annotation(mut self, name: &str, value: &str) -> Self {
        let name = if name.contains('/') {
            name.to_owned()
        } else {
            format!("traffic.sidecar.istio.io/{name}")
        };
        self.settings.annotations.insert(name, value.to_owned());
        self
    }

    /// With this `proxyMetadata`.
    pub(crate) fn metadata(mut self, name: &str, value: &str) -> Self {
        let metadata = &mut self.settings.proxy_metadata;
        metadata.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With a sidecar of this user and group.
    pub(crate) fn sidecar(mut self, uid: u32, gid: u32) -> Self {
        self.settings.proxy_uid = uid;
        self.settings.proxy_gid = gid;
        self
    }

    /// With a sidecar that answers DNS for the name servers of the pod.
    pub(crate) fn dns(mut self) -> Self {
        let of = |family| Addr::NameServer.of(family);
        self.settings.name_servers = vec![of(Family::V4), of(Family::V6)];
        self.metadata("ISTIO_META_DNS_CAPTURE", "true")
    }

    pub(crate) fn dials<const N: usize>(mut self, dials: [Dial; N]) -> Self {
        self.dials.extend(dials);
        self
    }
}

/// A TCP connection of the pod's application.
pub(crate) fn app(to: Addr, port: u16) -> Dial {
    Dial {
        from: Place::Pod,
        uid: APP,
        gid: APP,
        source: None,
        source_port: 0,
        mark: 0,
        protocol: Protocol::Tcp,
        to,
        port,
        families: ALL,
        answers: (Place::World, Role::Direct),
    }
}

/// One of its sidecar.
pub(crate) fn proxy(to: Addr, port: u16) -> Dial {
    app(to, port).by(PROXY, PROXY)
}

/// One that arrives at the pod.
pub(crate) fn arriving(to: Addr, port: u16) -> Dial {
    app(to, port).from(Place::World)
}

impl Dial {
    pub(crate) fn by(self, uid: u32, gid: u32) -> Self {
        Self { uid, gid, ..self }
    }

    pub(crate) fn from(self, from: Place) -> Self {
        Self { from, ..self }
    }

    pub(crate) fn bound_to(self, source: Addr) -> Self {
        let source = Some(source);
        Self { source, ..self }
    }

    pub(crate) fn source_port(self, source_port: u16) -> Self {
        Self {
            source_port,
            ..self
        }
    }

    pub(crate) fn marked(self, mark: libc::c_int) -> Self {
        Self { mark, ..self }
    }

    pub(crate) fn udp(self) -> Self {
        let protocol = Protocol::Udp;
        Self { protocol, ..self }
    }

    pub(crate) fn udp_unconnected(self) -> Self {
        let protocol = Protocol::UdpUnconnected;
        Self { protocol, ..self }
    }

    pub(crate) fn only(self, families: &'static [Family]) -> Self {
        Self { families, ..self }
    }

    fn answered_by(self, place: Place, role: Role) -> Self {
        let answers = (place, role);
        Self { answers, ..self }
    }

    /// Goes to the pod's sidecar, which is told where it should have gone.
    pub(crate) fn is_outbound(self) -> Self {
        self.answered_by(Place::Pod, Role::Outbound)
    }

    /// Goes to the pod's sidecar as something that arrives.
    pub(crate) fn is_inbound(self) -> Self {
        self.answered_by(Place::Pod, Role::Inbound)
    }

    /// Goes to the name server in the pod's sidecar.
    pub(crate) fn is_dns(self) -> Self {
        self.answered_by(Place::Pod, Role::Dns)
    }

    /// Goes where it was dialled.
    pub(crate) fn is_direct(self) -> Self {
        let is_own = match self.to {
            Addr::Pod
            | Addr::PodByEth1
            | Addr::Loopback
            | Addr::OtherLoopback
            | Addr::EnvoySource => true,
            Addr::Vip
            | Addr::OtherRange
            | Addr::NameServer
            | Addr::OtherNameServer
            | Addr::BehindEth1
            | Addr::World
            | Addr::Peer
            | Addr::Vm => false,
        };
        let place = if is_own { Place::Pod } else { Place::World };
        self.answered_by(place, Role::Direct)
    }

    /// Goes to the other pod's sidecar.
    pub(crate) fn is_inbound_at_peer(self) -> Self {
        self.answered_by(Place::Peer, Role::Inbound)
    }

    /// Goes to the sidecar of the other pod, which it leaves.
    pub(crate) fn is_outbound_at_peer(self) -> Self {
        self.answered_by(Place::Peer, Role::Outbound)
    }
}
