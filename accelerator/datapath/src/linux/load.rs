//! Loading, attaching and adopting.
//!
//! The programs are always loaded anew and compared with those that run, by the kernel's hash of
//! their instructions. Equal ones stay; others are replaced in place, link by link, on the same maps,
//! so that there is no moment without a program.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{Program, ProgramError, ProgramFd},
};
use isthmus_accel_abi::{ABI_VERSION, FlowMode, Settings, SettingsMode, map, program};

use super::{
    btf::KernelOffsets,
    installation::Installation,
    kernel_version::KernelVersion,
    maps::{Maps, RawMap},
    netns, order,
    pins::Pins,
    sys::{self, AttachType},
    version::Version,
    virtual_machines,
};
use crate::{DatapathError, defects::check_sockmap};

/// How often a program is offered to a verifier that is interrupted; as libbpf.
const LOAD_ATTEMPTS: u32 = 5;

/// Where a program is attached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Hook {
    /// To the root of cgroup v2, through a link.
    Cgroup(AttachType),
    /// To the network namespace of each pod, as an instance of its own.
    Netns,
    /// To each interface of virtual machines, as an instance of its own.
    Interface,
    /// To the sockmap, which holds it.
    Sockmap(AttachType),
    /// Nowhere: run by the agent.
    None,
}

impl Hook {
    pub(crate) fn of(name: &'static str) -> Self {
        match name {
            program::CONNECT4 => Self::Cgroup(AttachType::CgroupInet4Connect),
            program::CONNECT6 => Self::Cgroup(AttachType::CgroupInet6Connect),
            program::SENDMSG4 => Self::Cgroup(AttachType::CgroupUdp4Sendmsg),
            program::SENDMSG6 => Self::Cgroup(AttachType::CgroupUdp6Sendmsg),
            program::RECVMSG4 => Self::Cgroup(AttachType::CgroupUdp4Recvmsg),
            program::RECVMSG6 => Self::Cgroup(AttachType::CgroupUdp6Recvmsg),
            program::GETPEERNAME4 => Self::Cgroup(AttachType::CgroupInet4Getpeername),
            program::GETPEERNAME6 => Self::Cgroup(AttachType::CgroupInet6Getpeername),
            program::GETSOCKOPT => Self::Cgroup(AttachType::CgroupGetsockopt),
            program::SOCK_OPS => Self::Cgroup(AttachType::CgroupSockOps),
            program::SK_LOOKUP => Self::Netns,
            program::VIRTUAL => Self::Interface,
            program::SK_MSG => Self::Sockmap(AttachType::SkMsgVerdict),
            _ => Self::None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cgroup(AttachType::CgroupInet4Connect) => "cgroup/connect4",
            Self::Cgroup(AttachType::CgroupInet6Connect) => "cgroup/connect6",
            Self::Cgroup(AttachType::CgroupUdp4Sendmsg) => "cgroup/sendmsg4",
            Self::Cgroup(AttachType::CgroupUdp6Sendmsg) => "cgroup/sendmsg6",
            Self::Cgroup(AttachType::CgroupUdp4Recvmsg) => "cgroup/recvmsg4",
            Self::Cgroup(AttachType::CgroupUdp6Recvmsg) => "cgroup/recvmsg6",
            Self::Cgroup(AttachType::CgroupInet4Getpeername) => "cgroup/getpeername4",
            Self::Cgroup(AttachType::CgroupInet6Getpeername) => "cgroup/getpeername6",
            Self::Cgroup(AttachType::CgroupGetsockopt) => "cgroup/getsockopt",
            Self::Cgroup(_) => "sock_ops",
            Self::Netns => "sk_lookup",
            Self::Interface => "tcx/ingress",
            Self::Sockmap(_) => "sk_msg",
            Self::None => "test_run",
        }
    }
}

/// What may differ from one agent to another.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LoadOptions {
    /// Whether messages may skip TCP; without, connections are redirected only.
    pub mode: SettingsMode,
    /// Whether the programs tell about single connections.
    pub flows: FlowMode,
    /// Bounds of maps other than the built-in ones, by name. For tests of full maps.
    pub max_entries: Vec<(&'static str, u32)>,
}

/// Makes everything be there and run; what is there already stays.
pub(crate) fn load(
    pins: &Pins,
    cgroup_root: &Path,
    options: &LoadOptions,
) -> Result<Maps, DatapathError> {
    load_version(pins, cgroup_root, options, &Version::built_in())?;
    Maps::open(pins)
}

/// As [`load`], of whichever version.
pub(crate) fn load_version(
    pins: &Pins,
    cgroup_root: &Path,
    options: &LoadOptions,
    version: &Version,
) -> Result<(), DatapathError> {
    pins.make_dirs()?;
    let is_whole = version.maps.iter().all(|name| pins.map(name).exists());
    let installation = Installation::at(pins.dir());
    if let Some(found) = installation.abi_version()?
        && found != version.abi_version
    {
        return Err(DatapathError::OtherAbi {
            path: pins.dir().to_owned(),
            found,
            expected: version.abi_version,
        });
    }

    let cgroup = File::open(cgroup_root).map_err(|source| DatapathError::Kernel {
        action: format!("opening {}", cgroup_root.display()),
        source,
    })?;
    // Before anything is attached.
    order::outlook(cgroup.as_fd())?;
    let offsets = KernelOffsets::of_running_kernel()?;
    let mut object = load_object(pins, options, &offsets, version)?;
    let mode = allowed_mode(options.mode, &offsets);
    if version.abi_version == ABI_VERSION {
        // Fails, before anything is attached to them, if they have other layouts under the right names.
        let maps = Maps::open(pins)?;
        let settings = Settings {
            abi_version: ABI_VERSION,
            mode,
            flows: options.flows,
        };
        maps.settings.put(&0, &settings)?;
    } else {
        installation.write_settings(version.abi_version, mode)?;
    }

    let sockets = RawMap::open(pins, map::SOCKETS)?;
    for name in version.programs.iter().copied() {
        let fresh = load_program(&mut object, name)?;
        let running = settle(pins, name, &fresh, is_whole, version)?;
        attach(pins, name, running.as_fd(), cgroup.as_fd(), sockets.fd())?;
    }
    Ok(())
}

/// Without the fields the latch cannot know what it must, and below its floor the kernel's sockmap has
/// defects: nothing skips TCP then, whatever is asked for.
fn allowed_mode(wanted: SettingsMode, offsets: &KernelOffsets) -> SettingsMode {
    let is_sound = KernelVersion::running().is_some_and(|version| check_sockmap(version).is_ok());
    if wanted != SettingsMode::SOCKMAP || (is_sound && offsets.missing().is_empty()) {
        wanted
    } else {
        SettingsMode::REDIRECT_ONLY
    }
}

/// Loads every program once and forgets it; returns the kernel's refusal of each.
#[must_use]
pub fn try_programs(offsets: &KernelOffsets) -> Vec<(&'static str, Option<String>)> {
    let version = Version::built_in();
    let mut loader = loader(offsets, &version);
    let mut object = match loader.load(&version.object) {
        Ok(object) => object,
        Err(error) => {
            let reason = format!("the maps cannot be made: {}", last_cause(&error));
            return program::ALL.map(|name| (name, Some(reason.clone()))).into();
        }
    };
    let refusal = |name| match load_program(&mut object, name) {
        Ok(_) => (name, None),
        Err(error) => (
            name,
            Some(verifiers_reason(&error).unwrap_or_else(|| last_cause(&error))),
        ),
    };
    version.programs.iter().copied().map(refusal).collect()
}

/// Why the kernel refuses a program: the verifier's last words before its statistics.
fn verifiers_reason(error: &DatapathError) -> Option<String> {
    let DatapathError::Program { source, .. } = error else {
        return None;
    };
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = source.as_ref()
    else {
        return None;
    };
    let log = verifier_log.to_string();
    let is_statistics = |line: &&str| {
        ["processed ", "verification time ", "stack depth "]
            .iter()
            .any(|words| line.starts_with(words))
    };
    let last = log
        .lines()
        .take_while(|line| !is_statistics(line))
        .filter(|line| !line.trim().is_empty())
        .last()?;
    Some(format!("{io_error}: {last}"))
}

// The first line: the verifier's log is for whoever changes the programs.
fn last_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

pub(super) fn loader<'a>(offsets: &'a KernelOffsets, version: &Version) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    // Another version may not ask for all of them.
    let must_exist = version.abi_version == ABI_VERSION;
    for (name, offset) in offsets.globals() {
        loader.override_global(name, offset, must_exist);
    }
    loader
}

fn load_object(
    pins: &Pins,
    options: &LoadOptions,
    offsets: &KernelOffsets,
    version: &Version,
) -> Result<Ebpf, DatapathError> {
    let mut loader = loader(offsets, version);
    for (name, max_entries) in &options.max_entries {
        loader.map_max_entries(name, *max_entries);
    }
    for name in &version.maps {
        loader.map_pin_path(name, pins.map(name));
    }
    loader
        .load(&version.object)
        .map_err(|source| DatapathError::Load {
            source: Box::new(source),
        })
}

/// Loads one program into the kernel and returns its descriptor.
pub(crate) fn load_program(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<OwnedFd, DatapathError> {
    let program = object
        .program_mut(name)
        .ok_or_else(|| DatapathError::Object {
            detail: format!("it has no program {name}"),
        })?;
    let mut attempts = LOAD_ATTEMPTS;
    let loaded = loop {
        attempts -= 1;
        match load_by_type(program, name) {
            Err(error) if attempts > 0 && is_interrupted(&error) => {}
            loaded => break loaded.and_then(|fd| Ok(fd.as_fd().try_clone_to_owned()?)),
        }
    };
    loaded.map_err(|source| DatapathError::Program {
        program: name,
        source: Box::new(source),
    })
}

// The verifier gives up whenever a signal is on its way to the thread.
fn is_interrupted(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. }
        if io_error.kind() == io::ErrorKind::WouldBlock)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the object holds a few of aya's thirty types"
)]
pub(super) fn load_by_type<'a>(
    program: &'a mut Program,
    name: &str,
) -> Result<&'a ProgramFd, ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load()?,
        Program::CgroupSockopt(program) => program.load()?,
        Program::SockOps(program) => program.load()?,
        Program::SkMsg(program) => program.load()?,
        Program::SchedClassifier(program) => program.load()?,
        Program::Iter(program) => program.load(iterated(name), &Btf::from_sys_fs()?)?,
        Program::SkLookup(program) => program.load()?,
        _ => return Err(ProgramError::UnexpectedProgramType),
    }
    program.fd()
}

/// What an iterator walks through, as the kernel's types call it.
pub(super) fn iterated(name: &str) -> &'static str {
    if name == program::LISTENERS {
        "tcp"
    } else {
        "bpf_sk_storage_map"
    }
}

/// Returns the program that shall run: the pinned one if it is the same, else the fresh one, pinned.
fn settle(
    pins: &Pins,
    name: &'static str,
    fresh: &OwnedFd,
    is_whole: bool,
    version: &Version,
) -> Result<OwnedFd, DatapathError> {
    let path = pins.program(name);
    let failed = |action: &str| {
        let action = format!("{action} {}", path.display());
        move |source| DatapathError::Kernel { action, source }
    };
    if is_whole && let Ok(pinned) = sys::open_pinned(&path) {
        let tag = |program: BorrowedFd<'_>| sys::program_facts(program).map(|facts| facts.tag);
        let is_same = tag(pinned.as_fd()).map_err(failed("asking about"))?
            == tag(fresh.as_fd()).map_err(failed("asking about"))?;
        if is_same {
            return Ok(pinned);
        }
    }
    // Before the pin, so that whoever is interrupted begins anew.
    match Hook::of(name) {
        Hook::Netns => netns::replace_instances(pins, version)?,
        Hook::Interface => virtual_machines::replace_instances(pins, version)?,
        Hook::Cgroup(_) | Hook::Sockmap(_) | Hook::None => {}
    }
    Pins::unpin(&path)?;
    sys::pin(fresh.as_fd(), &path).map_err(failed("pinning"))?;
    fresh.try_clone().map_err(failed("duplicating"))
}

fn attach(
    pins: &Pins,
    name: &'static str,
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    sockets: BorrowedFd<'_>,
) -> Result<(), DatapathError> {
    let failed = |source| DatapathError::Kernel {
        action: format!("attaching {name} to {}", Hook::of(name).name()),
        source,
    };
    match Hook::of(name) {
        Hook::None | Hook::Netns | Hook::Interface => Ok(()),
        // Replaces; the sockets that are in the map keep the program that they came in with.
        Hook::Sockmap(hook) => sys::attach_to_map(program, sockets, hook).map_err(failed),
        Hook::Cgroup(hook) => {
            let path = pins.link(name);
            if let Ok(link) = sys::open_pinned(&path) {
                let wanted = sys::program_facts(program).map_err(failed)?.id;
                if sys::link_facts(link.as_fd()).map_err(failed)?.program_id != wanted {
                    sys::update_link(link.as_fd(), program).map_err(failed)?;
                }
                return Ok(());
            }
            let place = order::place(cgroup, hook)?;
            let link = sys::create_link(program, cgroup, hook, place).map_err(failed)?;
            sys::pin(link.as_fd(), &path).map_err(failed)
        }
    }
}
