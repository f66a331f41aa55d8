//! From the file of a network namespace to its cookie, addresses and routes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
};

use isthmus_accel_abi::ENVOY_INBOUND_SOURCE_V6;
use isthmus_accel_core::{Routes, Sources};
use isthmus_accel_datapath::netns_cookie;
use nix::{fcntl::OFlag, ifaddrs::getifaddrs, sched::CloneFlags};

use crate::routes::routes_here;

/// A network namespace as it was when somebody looked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Namespace {
    /// Addresses of its interfaces without loopback and link-local ones. Never empty.
    pub addrs: BTreeSet<IpAddr>,
    /// The kernel's cookie.
    pub cookie: u64,
    /// Numbers of its interfaces, by name.
    pub interfaces: BTreeMap<String, u32>,
    /// Its main routing table; empty unless asked for.
    pub routes: Routes,
    /// Where what leaves by the default routes comes from.
    pub sources: Sources,
}

/// What to look for in a namespace.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Wish {
    /// Everything but its routes.
    #[default]
    Addresses,
    /// Its routes too, which take two more system calls and one for each 32 KiB of them.
    AddressesAndRoutes,
}

/// Why there is no [`Namespace`] behind a path.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// Nothing is there: the pod has not started yet, or is gone.
    #[error("{} does not exist", path.display())]
    Absent {
        /// The path.
        path: PathBuf,
    },
    /// The namespace of this agent: traffic of the node itself is not captured.
    #[error("{} is the network namespace of the node itself", path.display())]
    HostNamespace {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refused one step.
    #[error("{} cannot be {action}", path.display())]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The network of the pod is not set up yet, or is being taken down.
    #[error("{} has no address yet", path.display())]
    NoAddress {
        /// The path.
        path: PathBuf,
    },
    /// A file, but of something else. `ip netns add` makes an empty file and mounts over it.
    #[error("{} is no network namespace (yet)", path.display())]
    NotNamespace {
        /// The path.
        path: PathBuf,
    },
}

impl LookupError {
    /// Tells whether the pod may be fine all the same, so that what was known of it still counts.
    ///
    /// Otherwise its traffic must be left alone at once: its address may be another pod's by now.
    #[must_use]
    pub fn is_inconclusive(&self) -> bool {
        match self {
            Self::Kernel { .. } => true,
            Self::Absent { .. }
            | Self::HostNamespace { .. }
            | Self::NoAddress { .. }
            | Self::NotNamespace { .. } => false,
        }
    }
}

/// What was found behind each path.
pub type Lookups = BTreeMap<PathBuf, Result<Namespace, LookupError>>;

/// Looks behind every path. Needs `CAP_SYS_ADMIN` to enter the namespaces.
///
/// Works in a thread of its own, which ends afterwards: a thread that has entered a namespace must
/// never be reused. Costs the thread and some ten system calls per path.
///
/// # Errors
///
/// Returns the kernel's answer if there can be no thread, or no socket in this one's namespace.
pub fn look_up(paths: BTreeMap<PathBuf, Wish>) -> io::Result<Lookups> {
    let worker = thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            let own = cookie_here()?;
            let look = |(path, wish): (PathBuf, Wish)| {
                let found = look_behind(&path, wish, own);
                (path, found)
            };
            Ok(paths.into_iter().map(look).collect())
        })?;
    worker.join().unwrap_or_else(|_| {
        Err(io::Error::other(
            "the thread that enters network namespaces panicked",
        ))
    })
}

fn look_behind(path: &Path, wish: Wish, own_cookie: u64) -> Result<Namespace, LookupError> {
    let file = open_namespace(path)?;
    nix::sched::setns(&file, CloneFlags::CLONE_NEWNET).map_err(|errno| {
        if errno == nix::Error::EINVAL {
            return LookupError::NotNamespace {
                path: path.to_owned(),
            };
        }
        kernel_error("entered", path, errno.into())
    })?;

    let cookie = cookie_here().map_err(|error| kernel_error("identified", path, error))?;
    if cookie == own_cookie {
        return Err(LookupError::HostNamespace {
            path: path.to_owned(),
        });
    }
    let addrs =
        addrs_here().map_err(|error| kernel_error("asked for its addresses", path, error))?;
    if addrs.is_empty() {
        return Err(LookupError::NoAddress {
            path: path.to_owned(),
        });
    }
    let interfaces =
        interfaces_here().map_err(|error| kernel_error("asked for its interfaces", path, error))?;
    let routes = match wish {
        Wish::Addresses => Routes::new(),
        Wish::AddressesAndRoutes => {
            routes_here().map_err(|error| kernel_error("asked for its routes", path, error))?
        }
    };
    Ok(Namespace {
        addrs,
        cookie,
        interfaces,
        routes,
        sources: sources_here(),
    })
}

// Whoever writes the configuration chooses the path: a FIFO may not block the agent, a terminal may
// not become its own.
fn open_namespace(path: &Path) -> Result<File, LookupError> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path);
    file.map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            return LookupError::Absent {
                path: path.to_owned(),
            };
        }
        kernel_error("opened", path, error)
    })
}

fn kernel_error(action: &'static str, path: &Path, source: io::Error) -> LookupError {
    LookupError::Kernel {
        action,
        path: path.to_owned(),
        source,
    }
}

// Any socket will do, and this one needs no interface to be up.
fn cookie_here() -> io::Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    netns_cookie(socket.as_fd())
}

fn interfaces_here() -> io::Result<BTreeMap<String, u32>> {
    let interfaces = nix::net::if_::if_nameindex()?;
    let named = |interface: &nix::net::if_::Interface| {
        (
            interface.name().to_string_lossy().into_owned(),
            interface.index(),
        )
    };
    Ok(interfaces.iter().map(named).collect())
}

fn addrs_here() -> io::Result<BTreeSet<IpAddr>> {
    let as_pod_addr = |addr: nix::ifaddrs::InterfaceAddress| {
        let storage = addr.address?;
        let v4 = storage.as_sockaddr_in().map(|addr| IpAddr::V4(addr.ip()));
        let v6 = || storage.as_sockaddr_in6().map(|addr| IpAddr::V6(addr.ip()));
        v4.or_else(v6).filter(is_of_pod)
    };
    Ok(getifaddrs()?.filter_map(as_pod_addr).collect())
}

// To connect a datagram socket sends nothing, but has the kernel choose a route and a source.
fn sources_here() -> Sources {
    // Addresses for documentation (RFC 5737, RFC 3849), so that no route but the default one leads there.
    let source_to = |any: SocketAddr, far: SocketAddr| {
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(far).ok()?;
        socket
            .local_addr()
            .ok()
            .map(|addr| addr.ip())
            .filter(is_of_pod)
    };
    let v4 = source_to(
        (Ipv4Addr::UNSPECIFIED, 0).into(),
        (Ipv4Addr::new(203, 0, 113, 1), 9).into(),
    );
    let v6 = source_to(
        (Ipv6Addr::UNSPECIFIED, 0).into(),
        (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into(),
    );
    Sources {
        v4: v4.and_then(|addr| match addr {
            IpAddr::V4(addr) => Some(addr),
            IpAddr::V6(_) => None,
        }),
        v6: v6.and_then(|addr| match addr {
            IpAddr::V6(addr) => Some(addr),
            IpAddr::V4(_) => None,
        }),
    }
}

fn is_of_pod(addr: &IpAddr) -> bool {
    // `::6` is what Istio adds to every pod's loopback device.
    let is_shared = match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => {
            addr.is_unicast_link_local() || addr.octets() == ENVOY_INBOUND_SOURCE_V6
        }
    };
    !is_shared && !addr.is_loopback() && !addr.is_unspecified()
}
