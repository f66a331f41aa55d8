//! bpf(2) and the other calls that no crate offers the way they are needed here.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use bytemuck::Pod;

use super::order::Place;

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TEST_RUN: libc::c_int = 10;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const ITER_CREATE: libc::c_int = 33;
const LINK_DETACH: libc::c_int = 34;

/// `enum bpf_attach_type` of Linux, `include/uapi/linux/bpf.h`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub(crate) enum AttachType {
    CgroupSockOps = 3,
    SkMsgVerdict = 7,
    CgroupInet4Connect = 10,
    CgroupInet6Connect = 11,
    CgroupUdp4Sendmsg = 14,
    CgroupUdp6Sendmsg = 15,
    CgroupUdp4Recvmsg = 19,
    CgroupUdp6Recvmsg = 20,
    CgroupGetsockopt = 21,
    TraceIter = 28,
    CgroupInet4Getpeername = 29,
    CgroupInet6Getpeername = 30,
    SkLookup = 36,
    TcxIngress = 46,
}

/// What the kernel says about a program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ProgramFacts {
    pub(crate) id: u32,
    /// Hash of the instructions.
    pub(crate) tag: [u8; 8],
}

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct LinkFacts {
    pub(crate) program_id: u32,
    /// Number of the hook, for links to a cgroup, a network namespace or an interface.
    pub(crate) attach_type: Option<u32>,
    /// Inode of the network namespace that it is linked to, while that is there.
    pub(crate) netns_inode: Option<u64>,
}

/// What the kernel says about a map.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct MapFacts {
    pub(crate) key_size_bytes: u32,
    pub(crate) value_size_bytes: u32,
    pub(crate) max_entries: u32,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct FourWords {
    words: [u32; 4],
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct IterLinkAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    pad: u32,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
}

/// Of cgroups, the kernel also writes the last field.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct CgroupQueryAttr {
    query: QueryAttr,
    ids_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

fn bpf<A: Pod>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_int> {
    // SAFETY: the attribute is a plain value of the length that is passed; the pointers in it were
    // made from live references by the callers below.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<A>(),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(answer).map_err(io::Error::other)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("an open descriptor is not negative")
}

fn address<T: ?Sized>(value: &T) -> u64 {
    std::ptr::from_ref(value).cast::<u8>().expose_provenance() as u64
}

fn address_mut<T: ?Sized>(value: &mut T) -> u64 {
    std::ptr::from_mut(value).cast::<u8>().expose_provenance() as u64
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn query_attr(target: BorrowedFd<'_>, attach_type: AttachType, ids: &mut [u32]) -> QueryAttr {
    QueryAttr {
        target_fd: raw(target),
        attach_type: attach_type as u32,
        count: u32::try_from(ids.len()).expect("a few"),
        ids: address_mut(ids),
        ..bytemuck::Zeroable::zeroed()
    }
}

fn elem_attr(map: BorrowedFd<'_>, key: u64, value: u64) -> ElemAttr {
    ElemAttr {
        map_fd: raw(map),
        pad: 0,
        key,
        value,
        flags: 0,
    }
}

/// Looks a key up; the value buffer is as long as the map says.
pub(crate) fn map_lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = elem_attr(map, address(key), address_mut(value));
    match bpf(MAP_LOOKUP_ELEM, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Creates or replaces an entry.
pub(crate) fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    bpf(
        MAP_UPDATE_ELEM,
        &mut elem_attr(map, address(key), address(value)),
    )
    .map(drop)
}

/// Removes an entry; tells whether it was there.
pub(crate) fn map_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    match bpf(MAP_DELETE_ELEM, &mut elem_attr(map, address(key), 0)) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes the key after `key` (the first for `None`) into `next`; tells whether there is one.
pub(crate) fn map_next_key(
    map: BorrowedFd<'_>,
    key: Option<&[u8]>,
    next: &mut [u8],
) -> io::Result<bool> {
    let mut attr = elem_attr(map, key.map_or(0, address), address_mut(next));
    match bpf(MAP_GET_NEXT_KEY, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens a pinned object.
pub(crate) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjAttr {
        path: address(path.as_bytes_with_nul()),
        fd: 0,
        flags: 0,
    };
    bpf(OBJ_GET, &mut attr).map(owned)
}

/// Pins an object.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjAttr {
        path: address(path.as_bytes_with_nul()),
        fd: raw(fd),
        flags: 0,
    };
    bpf(OBJ_PIN, &mut attr).map(drop)
}

/// Attaches a program to a map, in place of the one that is there.
pub(crate) fn attach_to_map(
    program: BorrowedFd<'_>,
    map: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<()> {
    let mut attr = FourWords {
        words: [raw(map), raw(program), attach_type as u32, 0],
    };
    bpf(PROG_ATTACH, &mut attr).map(drop)
}

/// Attaches a program to a cgroup or a network namespace, beside those that are there.
pub(crate) fn create_link(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: AttachType,
    place: Place,
) -> io::Result<OwnedFd> {
    // `BPF_F_BEFORE`, and no program that it would be relative to.
    let flags = match place {
        Place::First => 1 << 3,
        Place::Last => 0,
    };
    let mut attr = FourWords {
        words: [raw(program), raw(target), attach_type as u32, flags],
    };
    bpf(LINK_CREATE, &mut attr).map(owned)
}

/// Attaches a program to an interface of this thread's network namespace, behind those that are there.
/// Linux 6.6.
pub(crate) fn link_to_interface(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    let mut attr = FourWords {
        words: [raw(program), ifindex, AttachType::TcxIngress as u32, 0],
    };
    bpf(LINK_CREATE, &mut attr).map(owned)
}

/// What a cgroup has at a hook.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct CgroupPrograms {
    /// In the order in which they run.
    pub(crate) ids: Vec<u32>,
    /// Changes with every change of the list; zero on kernels that take no wishes for the order.
    pub(crate) revision: u64,
}

/// Asks which programs are attached to a cgroup itself, not to those above it.
pub(crate) fn cgroup_programs(
    cgroup: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<CgroupPrograms> {
    // The kernel's own bound, `BPF_CGROUP_MAX_PROGS`.
    let mut ids = [0_u32; 64];
    let mut attr = CgroupQueryAttr {
        query: query_attr(cgroup, attach_type, &mut ids),
        ..bytemuck::Zeroable::zeroed()
    };
    bpf(PROG_QUERY, &mut attr)?;
    // SAFETY: the kernel wrote through the address; a plain read of a live local.
    let ids = unsafe { std::ptr::read_volatile(&raw const ids) };
    let count = ids.len().min(attr.query.count as usize);
    Ok(CgroupPrograms {
        ids: ids[..count].to_vec(),
        revision: attr.revision,
    })
}

/// Asks for a program's name, of which the kernel keeps 15 characters.
pub(crate) fn program_name(id: u32) -> io::Result<String> {
    let mut attr = FourWords {
        words: [id, 0, 0, 0],
    };
    let program = bpf(PROG_GET_FD_BY_ID, &mut attr).map(owned)?;
    // `struct bpf_prog_info`: the name is at byte 64.
    let info = object_info::<20>(program.as_fd())?;
    let name: Vec<u8> = info[16..]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .take_while(|&byte| byte != 0)
        .collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

/// Replaces the program of a link, without a moment in between.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = FourWords {
        words: [raw(link), raw(program), 0, 0],
    };
    bpf(LINK_UPDATE, &mut attr).map(drop)
}

/// Ends what a link does. Unlike the end of the link itself, which comes some time after its last
/// reference went, this has happened on return: no run of the program is under way any more.
/// Linux 5.9.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    // Waits for a grace period of RCU, in which programs run (Linux, `kernel/sched/membarrier.c`).
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    let mut attr = FourWords {
        words: [raw(link), 0, 0, 0],
    };
    bpf(LINK_DETACH, &mut attr)?;
    // SAFETY: plain numbers. Kernels with `nohz_full` refuse, where a run may last a moment longer.
    let _is_refused = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    Ok(())
}

/// Runs an iterator program over the elements of a map; returns what it has written.
pub(crate) fn iterate_map(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    // `union bpf_iter_link_info`, of which a map needs the first word.
    iterate(program, &[raw(map)])
}

/// Runs an iterator program over the TCP sockets of this thread's network namespace; returns what it
/// has written.
pub(crate) fn iterate_sockets(program: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    iterate(program, &[])
}

fn iterate(program: BorrowedFd<'_>, target: &[u32]) -> io::Result<Vec<u8>> {
    let iter_info = if target.is_empty() {
        0
    } else {
        address(target)
    };
    let mut attr = IterLinkAttr {
        prog_fd: raw(program),
        target_fd: 0,
        attach_type: AttachType::TraceIter as u32,
        flags: 0,
        iter_info,
        iter_info_len: u32::try_from(size_of_val(target)).map_err(io::Error::other)?,
        pad: 0,
    };
    let link = bpf(LINK_CREATE, &mut attr).map(owned)?;
    let mut attr = FourWords {
        words: [raw(link.as_fd()), 0, 0, 0],
    };
    let mut file = File::from(bpf(ITER_CREATE, &mut attr).map(owned)?);
    let mut written = Vec::new();
    file.read_to_end(&mut written)?;
    Ok(written)
}

/// Asks which programs are attached to a map. Linux 5.20 for sockmaps.
pub(crate) fn attached_to_map(
    map: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<Option<u32>> {
    let mut id = 0_u32;
    let mut attr = query_attr(map, attach_type, std::slice::from_mut(&mut id));
    bpf(PROG_QUERY, &mut attr)?;
    // SAFETY: the kernel wrote through the address; a plain read of a live local.
    let id = unsafe { std::ptr::read_volatile(&raw const id) };
    Ok((attr.count > 0).then_some(id))
}

/// Runs a program once on a made-up packet; returns its verdict.
pub(crate) fn test_run(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<u32> {
    let mut attr = TestRunAttr {
        prog_fd: raw(program),
        data_size_in: u32::try_from(packet.len()).map_err(io::Error::other)?,
        data_in: address(packet),
        repeat: 1,
        ..bytemuck::Zeroable::zeroed()
    };
    bpf(PROG_TEST_RUN, &mut attr)?;
    Ok(attr.retval)
}

/// Asks about a program.
pub(crate) fn program_facts(program: BorrowedFd<'_>) -> io::Result<ProgramFacts> {
    // `struct bpf_prog_info`: type, id, tag.
    let info = object_info::<4>(program)?;
    let mut tag = [0; 8];
    tag[..4].copy_from_slice(&info[2].to_ne_bytes());
    tag[4..].copy_from_slice(&info[3].to_ne_bytes());
    Ok(ProgramFacts { id: info[1], tag })
}

/// Asks about a link.
pub(crate) fn link_facts(link: BorrowedFd<'_>) -> io::Result<LinkFacts> {
    // `enum bpf_link_type`.
    const CGROUP: u32 = 3;
    const NETNS: u32 = 5;
    const TCX: u32 = 11;
    // `struct bpf_link_info`: type, id, prog_id, a hole, then by type: the cgroup's id of 8 bytes or the
    // namespace's inode of 4 or the interface's number, and the attach type.
    let info = object_info::<7>(link)?;
    let attach_type = match info[0] {
        CGROUP => Some(info[6]),
        NETNS | TCX => Some(info[5]),
        _ => None,
    };
    Ok(LinkFacts {
        program_id: info[2],
        attach_type,
        netns_inode: (info[0] == NETNS && info[4] != 0).then_some(info[4].into()),
    })
}

/// Asks about a map.
pub(crate) fn map_facts(map: BorrowedFd<'_>) -> io::Result<MapFacts> {
    // `struct bpf_map_info`: type, id, key_size, value_size, max_entries, map_flags.
    let info = object_info::<6>(map)?;
    Ok(MapFacts {
        key_size_bytes: info[2],
        value_size_bytes: info[3],
        max_entries: info[4],
    })
}

fn object_info<const WORDS: usize>(fd: BorrowedFd<'_>) -> io::Result<[u32; WORDS]> {
    let mut info = [0_u32; WORDS];
    let mut attr = InfoAttr {
        fd: raw(fd),
        len: u32::try_from(size_of_val(&info)).expect("a few words fit"),
        info: address_mut(&mut info),
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr)?;
    // SAFETY: the kernel wrote through the address; a plain read of a live local.
    Ok(unsafe { std::ptr::read_volatile(&raw const info) })
}
