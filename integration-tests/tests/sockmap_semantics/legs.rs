//! The same pair of sockets in every way in which the accelerator can, or cannot, be between them.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};

use isthmus_accel_abi::{Hop, PodFlags};

use crate::fixture::{APP, Fixture, PROXY, Pod, VIP, connect_from};

/// Where Istio's Envoy dials its application from.
const ENVOY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 6), 0);

/// What lies between the writer and the reader.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Leg {
    /// A pod that the programs do not govern.
    PlainTcp,
    AppToProxy,
    AppToProxyReturn,
    ProxyToProxy,
    ProxyToApp,
    ProxyToAppReturn,
}

impl Leg {
    pub(crate) const ALL: [Self; 6] = [
        Self::PlainTcp,
        Self::AppToProxy,
        Self::AppToProxyReturn,
        Self::ProxyToProxy,
        Self::ProxyToApp,
        Self::ProxyToAppReturn,
    ];

    /// Tells how the writer's bytes go, by what the pod of its application has opted in to.
    pub(crate) fn path(self, flags: PodFlags) -> Path {
        let is_in = flags.has(PodFlags::APP_WRITES);
        match self {
            Self::ProxyToProxy => Path::Redirected,
            Self::AppToProxy | Self::AppToProxyReturn if is_in => Path::Redirected,
            Self::ProxyToApp | Self::ProxyToAppReturn if flags.has(PodFlags::APP_READS) => {
                Path::Redirected
            }
            Self::ProxyToApp | Self::ProxyToAppReturn if is_in => Path::TcpInSockmap,
            Self::PlainTcp
            | Self::AppToProxy
            | Self::AppToProxyReturn
            | Self::ProxyToApp
            | Self::ProxyToAppReturn => Path::Tcp,
        }
    }
}

/// How bytes go from the writer to the reader.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Path {
    /// By TCP, between sockets that no sockmap knows.
    Tcp,
    /// By TCP, between sockets that are in the sockmap for what they send the other way.
    TcpInSockmap,
    /// From socket to socket.
    Redirected,
}

/// Two connected sockets; what is written into one is read from the other.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) writer: TcpStream,
    pub(crate) reader: TcpStream,
}

/// Pods of every kind, with the programs loaded.
#[derive(Debug)]
pub(crate) struct Legs {
    fixture: Fixture,
    plain: Pod,
    client: Pod,
    server: Pod,
    plain_listener: TcpListener,
    outbound: TcpListener,
    inbound: TcpListener,
    application: TcpListener,
}

impl Legs {
    /// Loads the programs; the applications of both pods have opted in to `flags`.
    pub(crate) fn load(flags: PodFlags) -> Self {
        let plain = Pod::alone([198, 18, 0, 3]);
        let (client, server) = Pod::pair();
        let mut fixture = Fixture::load();
        fixture.add_pod_with(&client, flags);
        fixture.add_pod_with(&server, flags);
        let any = Ipv4Addr::UNSPECIFIED;
        Self {
            plain_listener: plain.listen(APP, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080)),
            outbound: client.listen(PROXY, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001)),
            inbound: server.listen(PROXY, SocketAddrV4::new(any, 15_006)),
            application: server.listen(APP, SocketAddrV4::new(server.addr, 8080)),
            fixture,
            plain,
            client,
            server,
        }
    }

    /// Connects a new pair.
    pub(crate) fn pair(&self, leg: Leg) -> Pair {
        let service = SocketAddrV4::new(self.server.addr, 8080);
        let (connected, listener) = match leg {
            Leg::PlainTcp => (
                self.plain
                    .connect(APP, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080)),
                &self.plain_listener,
            ),
            Leg::AppToProxy | Leg::ProxyToAppReturn => {
                (self.client.connect(APP, VIP), &self.outbound)
            }
            Leg::ProxyToProxy => (self.client.connect(PROXY, service), &self.inbound),
            Leg::ProxyToApp | Leg::AppToProxyReturn => {
                let dial = move || Ok(connect_from(ENVOY, service));
                (self.server.run_as(PROXY, dial), &self.application)
            }
        };
        let connected = connected.expect("somebody listens");
        let (accepted, _) = listener.accept().expect("a connection");
        for stream in [&connected, &accepted] {
            stream.set_nodelay(true).expect("TCP");
        }
        match leg {
            Leg::PlainTcp | Leg::AppToProxy | Leg::ProxyToProxy | Leg::ProxyToApp => Pair {
                writer: connected,
                reader: accepted,
            },
            Leg::AppToProxyReturn | Leg::ProxyToAppReturn => Pair {
                writer: accepted,
                reader: connected,
            },
        }
    }

    /// Bytes that have skipped TCP on this leg so far.
    pub(crate) fn redirected_bytes(&self, leg: Leg) -> u64 {
        let (pod, hop) = match leg {
            Leg::PlainTcp => return 0,
            Leg::AppToProxy => (&self.client, Hop::APP_TO_PROXY),
            Leg::AppToProxyReturn => (&self.server, Hop::APP_TO_PROXY_RETURN),
            Leg::ProxyToProxy => (&self.client, Hop::PROXY_TO_PROXY_REQUEST),
            Leg::ProxyToApp => (&self.server, Hop::PROXY_TO_APP),
            Leg::ProxyToAppReturn => (&self.client, Hop::PROXY_TO_APP_RETURN),
        };
        self.fixture.hop(pod, hop).bytes_redirected
    }
}
