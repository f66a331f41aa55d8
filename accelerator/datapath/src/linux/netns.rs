//! `sk_lookup` in the network namespaces of pods, and the listeners that it gives connections to.
//!
//! ```text
//!  <pin dir>/programs/isthmus_sk_lookup       what every instance should be
//!  <pin dir>/links/isthmus_sk_lookup-COOKIE   the instance of one namespace, while it is there
//! ```
//!
//! An instance knows the cookie of its namespace by a constant of its own; the maps are shared. The
//! kernel empties the link when the namespace goes; the pin stays until somebody removes it.

mod files;

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io,
    net::{Ipv4Addr, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    thread,
};

use aya::EbpfLoader;
use isthmus_accel_abi::{ListenerKey, PodConfig, PodFlags, global, program};

use super::{
    load,
    maps::TypedMap,
    order::Place,
    pins::{Pins, failed},
    sys::{self, AttachType},
    version::Version,
    way_back::{self, Families, WayBackError},
};
use crate::{DatapathError, netns_cookie};

/// What a network namespace turned out to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Presence {
    /// It was there.
    Found,
    /// It is gone, or another one is in its place: whoever looks the next time will see.
    Gone,
}

/// Steers what arrives in the namespace behind `path`, if it is the one with this cookie. The
/// listeners that are there already are found first, so that none of them is missed.
pub(crate) fn attach(pins: &Pins, cookie: u64, path: &Path) -> Result<Presence, DatapathError> {
    let program = instance(pins, cookie, program::SK_LOOKUP, &Version::built_in())?;
    let found = in_namespace(cookie, path, |netns| {
        run_over_sockets(pins)?;
        let link = sys::create_link(program.as_fd(), netns, AttachType::SkLookup, Place::Last);
        let link = link.map_err(refused_link(path))?;
        let pin = pins.netns_link(cookie);
        Pins::unpin(&pin)?;
        sys::pin(link.as_fd(), &pin).map_err(failed("pinning", &pin))
    })?;
    Ok(found)
}

/// Ends that, and forgets the listeners.
pub(crate) fn detach(
    pins: &Pins,
    cookie: u64,
    listeners: &TypedMap<ListenerKey, u64>,
) -> Result<(), DatapathError> {
    let pin = pins.netns_link(cookie);
    // Before the listeners go, without which the program refuses what it captures.
    if let Ok(link) = sys::open_pinned(&pin) {
        sys::detach_link(link.as_fd()).map_err(failed("detaching", &pin))?;
    }
    Pins::unpin(&pin)?;
    let outbound = ListenerKey::outbound_of(cookie);
    for key in ListenerKey::inbound_of(cookie).chain(outbound) {
        listeners.remove(&key)?;
    }
    Ok(())
}

/// Tells whether a pod's sidecar dials for its clients (T1).
pub(crate) fn needs_way_back(config: &PodConfig) -> bool {
    config.flags.has(PodFlags::TPROXY)
}

/// Makes the way back to such a sidecar, or what is missing of it.
pub(crate) fn establish_way_back(
    cookie: u64,
    path: &Path,
    config: &PodConfig,
) -> Result<(), DatapathError> {
    let families = if config.flags.has(PodFlags::IPV6) {
        Families::Both
    } else {
        Families::V4
    };
    in_namespace(cookie, path, |_| {
        way_back::establish_here(families).map_err(no_way_back("made", path))
    })
    .map(drop)
}

/// Removes it from the namespace of a link. Where that is, is known or looked for among all namespaces that
/// have a file; one that has none, nobody can enter.
pub(crate) fn withdraw_way_back(
    pins: &Pins,
    cookie: u64,
    known: Option<&Path>,
) -> Result<(), DatapathError> {
    let Some(path) = file_of(pins, cookie, known)? else {
        return Ok(());
    };
    in_namespace(cookie, &path, |_| {
        way_back::withdraw_here().map_err(no_way_back("removed", &path))
    })
    .map(drop)
}

fn no_way_back(action: &'static str, netns: &Path) -> impl FnOnce(WayBackError) -> DatapathError {
    let netns = netns.to_owned();
    move |source| DatapathError::WayBack {
        action,
        netns,
        source,
    }
}

/// Looks for the listeners of a pod if none is known, of those that it needs: for one that began to listen
/// before, or that outlived one that came later.
pub(crate) fn find_listeners(
    pins: &Pins,
    (cookie, pod): (u64, &PodConfig),
    path: &Path,
    listeners: &TypedMap<ListenerKey, u64>,
) -> Result<(), DatapathError> {
    let needs_outbound = pod.flags.has(PodFlags::VIRTUAL_INTERFACES);
    let is_known = is_any_known(ListenerKey::inbound_of(cookie), listeners)?
        && (!needs_outbound || is_any_known(ListenerKey::outbound_of(cookie), listeners)?);
    if is_known {
        return Ok(());
    }
    in_namespace(cookie, path, |_| run_over_sockets(pins)).map(drop)
}

fn is_any_known(
    keys: impl Iterator<Item = ListenerKey>,
    listeners: &TypedMap<ListenerKey, u64>,
) -> Result<bool, DatapathError> {
    for key in keys {
        if listeners.get(&key)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Finds a file of the namespace of a link: where it is said to be, or among all that namespaces have. One
/// that has none, nobody can enter.
pub(super) fn file_of(
    pins: &Pins,
    cookie: u64,
    known: Option<&Path>,
) -> Result<Option<PathBuf>, DatapathError> {
    let pin = pins.netns_link(cookie);
    let Ok(link) = sys::open_pinned(&pin) else {
        return Ok(None);
    };
    let facts = sys::link_facts(link.as_fd()).map_err(failed("asking about", &pin))?;
    Ok(facts
        .netns_inode
        .and_then(|inode| files::find(inode, known)))
}

/// Returns the cookies of the namespaces that have a link.
pub(crate) fn attached(pins: &Pins) -> Result<BTreeSet<u64>, DatapathError> {
    pins.linked(Pins::cookie_of_netns_link)
}

/// Gives every namespace that has a link an instance of the program as it is in this object.
pub(crate) fn replace_instances(pins: &Pins, version: &Version) -> Result<(), DatapathError> {
    for cookie in attached(pins)? {
        let program = instance(pins, cookie, program::SK_LOOKUP, version)?;
        replace(&pins.netns_link(cookie), &program)?;
    }
    Ok(())
}

/// Puts another program behind a pinned link, or removes the pin of one whose place is gone.
pub(super) fn replace(pin: &Path, program: &OwnedFd) -> Result<(), DatapathError> {
    let link = sys::open_pinned(pin).map_err(failed("opening", pin))?;
    match sys::update_link(link.as_fd(), program.as_fd()) {
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Pins::unpin(pin),
        outcome => outcome.map_err(failed("replacing the program of", pin)),
    }
}

/// Loads a program for one namespace, on the pinned maps.
pub(super) fn instance(
    pins: &Pins,
    cookie: u64,
    name: &'static str,
    version: &Version,
) -> Result<OwnedFd, DatapathError> {
    let mut loader = EbpfLoader::new();
    loader
        .btf(None)
        .override_global(global::NETNS_COOKIE, &cookie, true);
    for name in &version.maps {
        loader.map_pin_path(name, pins.map(name));
    }
    let mut object = loader
        .load(&version.object)
        .map_err(|source| DatapathError::Load {
            source: Box::new(source),
        })?;
    load::load_program(&mut object, name)
}

/// Runs `work` in the namespace, on a thread of its own: one that has entered a namespace must never
/// be reused.
pub(super) fn in_namespace(
    cookie: u64,
    path: &Path,
    work: impl FnOnce(BorrowedFd<'_>) -> Result<(), DatapathError> + Send,
) -> Result<Presence, DatapathError> {
    let Some(netns) = open(path)? else {
        return Ok(Presence::Gone);
    };
    let enter_and_work = || {
        // SAFETY: an open descriptor; changes this thread only, which ends with this closure.
        if unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EINVAL) => Ok(Presence::Gone),
                _ => Err(failed("entering", path)(error)),
            };
        }
        if cookie_here().map_err(failed("identifying", path))? != cookie {
            return Ok(Presence::Gone);
        }
        work(netns.as_fd()).map(|()| Presence::Found)
    };
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, enter_and_work)
            .map_err(failed("making a thread for", path))?;
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

// Whoever writes the configuration chooses the path: a FIFO may not block the agent, a terminal may
// not become its own.
fn open(path: &Path) -> Result<Option<File>, DatapathError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    match file {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("opening", path)(error)),
    }
}

// Any socket will do, and this one needs no interface to be up.
fn cookie_here() -> io::Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    netns_cookie(socket.as_fd())
}

/// Runs `isthmus_listeners` over every TCP socket of the calling thread's namespace.
fn run_over_sockets(pins: &Pins) -> Result<(), DatapathError> {
    let pin = pins.program(program::LISTENERS);
    let run = || {
        let program = sys::open_pinned(&pin)?;
        sys::iterate_sockets(program.as_fd())
    };
    run().map(drop).map_err(failed("running", &pin))
}

fn refused_link(path: &Path) -> impl Fn(io::Error) -> DatapathError {
    move |source| {
        let path = path.display();
        let action = match source.raw_os_error() {
            Some(libc::E2BIG | libc::EEXIST) => format!(
                "attaching {} to {path}, which others have filled with programs of their own \
                 (`bpftool net` in the namespace names them),",
                program::SK_LOOKUP
            ),
            _ => format!("attaching {} to {path}", program::SK_LOOKUP),
        };
        DatapathError::Kernel { action, source }
    }
}
