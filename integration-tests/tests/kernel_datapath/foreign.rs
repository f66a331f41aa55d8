//! Programs and maps of somebody else, as raw instructions: they must be nobody's who runs in production.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd},
};

use isthmus_accel_datapath::linux::cgroup_root;

// Linux, `include/uapi/linux/bpf.h`.
const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const LINK_CREATE: libc::c_int = 28;

/// A kind of program, and where it is attached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    program: u32,
    attach: u32,
}

pub(crate) const CONNECT4: Kind = Kind {
    program: 18,
    attach: 10,
};
pub(crate) const SOCK_OPS: Kind = Kind {
    program: 13,
    attach: 3,
};
pub(crate) const SK_MSG: Kind = Kind {
    program: 16,
    attach: 7,
};

/// A sockmap of one socket.
pub(crate) fn sockmap() -> OwnedFd {
    // Kind (`BPF_MAP_TYPE_SOCKMAP`), sizes of key and value, entries.
    let mut words = [15_u32, 4, 4, 1];
    bpf(MAP_CREATE, &mut words).expect("the kernel has sockmaps")
}

/// Attaches a program to the root of the cgroups, for as long as the answer lives.
pub(crate) fn attach(program: &OwnedFd, kind: Kind) -> OwnedFd {
    let root = cgroup_root().expect("cgroup v2 is mounted");
    let cgroup = File::open(root).expect("it can be opened");
    let mut words = [descriptor(program), descriptor(&cgroup), kind.attach, 0];
    bpf(LINK_CREATE, &mut words).expect("it can be attached")
}

/// Attaches a program to a sockmap, for as long as that lives.
pub(crate) fn attach_to_map(program: &OwnedFd, map: &OwnedFd, kind: Kind) {
    let mut words = [descriptor(map), descriptor(program), kind.attach, 0];
    // Answers with zero, and no descriptor.
    call(PROG_ATTACH, &mut words).expect("it can be attached");
}

/// Loads a program.
pub(crate) fn load(kind: Kind, name: &[u8; 15], instructions: &[u64]) -> OwnedFd {
    let mut attr = LoadAttr {
        kind: kind.program,
        count: u32::try_from(instructions.len()).expect("a few"),
        instructions: instructions.as_ptr().expose_provenance() as u64,
        licence: c"GPL".as_ptr().expose_provenance() as u64,
        log: [0; 2],
        version_and_flags: [0; 2],
        name: [0; 16],
        ifindex: 0,
        expected_attach_type: kind.attach,
    };
    attr.name[..15].copy_from_slice(name);
    bpf(PROG_LOAD, &mut attr).expect("the kernel takes it")
}

/// The beginning of what `BPF_PROG_LOAD` takes.
#[repr(C)]
struct LoadAttr {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log: [u64; 2],
    version_and_flags: [u32; 2],
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
}

fn bpf<A>(command: libc::c_int, attr: &mut A) -> io::Result<OwnedFd> {
    let fd = call(command, attr)?;
    // SAFETY: the callers' commands answer with a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call<A>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_int> {
    // SAFETY: an attribute with its length, whose pointers are live in the callers.
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

pub(crate) fn descriptor(file: &impl AsRawFd) -> u32 {
    u32::try_from(file.as_raw_fd()).expect("an open descriptor is not negative")
}

/// The instructions that the tests need, by what they do.
pub(crate) mod op {
    /// `target = *(u32 *)(r1 + offset)`
    pub(crate) fn load_word(target: u8, offset: i16) -> u64 {
        instruction(0x61, target, 1, offset, 0)
    }

    /// `*(u32 *)(r1 + offset) = source`
    pub(crate) fn store_word(offset: i16, source: u8) -> u64 {
        instruction(0x63, 1, source, offset, 0)
    }

    /// `target = value`, 32 bits.
    pub(crate) fn set(target: u8, value: i32) -> u64 {
        instruction(0xb4, target, 0, 0, value)
    }

    /// Skips instructions unless the low 32 bits are equal.
    pub(crate) fn skip_unless_equal(register: u8, value: i32, skipped: i16) -> u64 {
        instruction(0x56, register, 0, skipped, value)
    }

    /// `*(u32 *)(r10 - 4) = value`, and `target` points to it.
    pub(crate) fn point_to_word(target: u8, value: i32) -> [u64; 3] {
        [
            instruction(0x62, 10, 0, -4, value),
            instruction(0xbf, target, 10, 0, 0),
            instruction(0x07, target, 0, 0, -4),
        ]
    }

    /// `target` is a map.
    pub(crate) fn point_to_map(target: u8, descriptor: u32) -> [u64; 2] {
        let descriptor = descriptor.cast_signed();
        [instruction(0x18, target, 1, 0, descriptor), 0]
    }

    /// Calls a helper of the kernel.
    pub(crate) fn call(helper: i32) -> u64 {
        instruction(0x85, 0, 0, 0, helper)
    }

    /// Returns `r0`.
    pub(crate) fn exit() -> u64 {
        instruction(0x95, 0, 0, 0, 0)
    }

    fn instruction(code: u8, target: u8, source: u8, offset: i16, value: i32) -> u64 {
        let mut bytes = [code, source << 4 | target, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
        bytes[4..].copy_from_slice(&value.to_ne_bytes());
        u64::from_ne_bytes(bytes)
    }
}
