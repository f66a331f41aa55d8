//! Section 8, case 18: a socket load balancer was there first. Either the proxy is told the service's address all the
//! same, or the accelerator stays out and says why.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd},
    path::Path,
};

use isthmus_accel_datapath::{
    DatapathError, Mechanism,
    linux::{DEFAULT_BPFFS, LinuxDatapath, LoadOptions, Patience, cgroup_root},
    probe,
};

use crate::fixture::{APP, Fixture, PROXY, Pod, original_dst, take_out};

/// A service that only the load balancer knows, and its backend.
const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 19, 18, 18), 80);
const BACKEND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 18_018);
const OUTBOUND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001);
const FEATURE: &str = "first place at connect";

#[test]
fn a_proxy_is_told_the_service_and_not_the_backend() {
    let balancer = LoadBalancer::attach();
    let (pod, outsider) = (Pod::alone([198, 18, 0, 1]), Pod::alone([198, 18, 0, 2]));
    let backend = outsider.listen(APP, BACKEND);
    let _translated = outsider.connect(APP, SERVICE).expect("it is translated");
    backend.accept().expect("by the load balancer");

    let found = probe(Path::new(DEFAULT_BPFFS));
    let row = found
        .rows
        .iter()
        .find(|row| row.feature == FEATURE)
        .expect("it looks at the order");
    assert!(row.detail.contains("cil_sock4_conne"), "{row:?}");
    if !row.is_present {
        assert!(found.first_missing(Mechanism::Redirect).is_some());
        stays_out();
        return;
    }

    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let proxy = pod.listen(PROXY, OUTBOUND);
    let _application = pod.connect(APP, SERVICE).expect("the proxy listens");
    let (accepted, _) = proxy.accept().expect("the proxy gets it, not the backend");
    assert_eq!(original_dst(&accepted).expect("it was redirected"), SERVICE);
    let _translated = outsider.connect(APP, SERVICE).expect("it is translated");
    backend.accept().expect("other pods have the load balancer");
    drop(balancer);
}

/// Where no program can be put before another.
fn stays_out() {
    let cgroup = cgroup_root().expect("cgroup v2 is mounted");
    let pin_dir = Path::new(DEFAULT_BPFFS).join(format!("isthmus-test-{}-lb", std::process::id()));
    let refused = LinuxDatapath::open_or_load(&pin_dir, &cgroup, &LoadOptions::default());
    let error = refused.expect_err("the load balancer would run first");
    assert!(
        matches!(
            error,
            DatapathError::Missing {
                feature: FEATURE,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("cil_sock4_conne"), "{error}");
    take_out(&pin_dir, &Patience::NONE).expect("nothing was attached");
}

/// A program as Cilium has one, at the root of the cgroups for as long as this lives.
#[derive(Debug)]
struct LoadBalancer {
    _link: OwnedFd,
}

// Linux, `include/uapi/linux/bpf.h`.
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const CGROUP_INET4_CONNECT: u32 = 10;
/// Offsets in `struct bpf_sock_addr`.
const USER_IP4: i16 = 4;
const USER_PORT: i16 = 24;

impl LoadBalancer {
    fn attach() -> Self {
        let address = |addr: SocketAddrV4| {
            let bytes = addr.ip().octets();
            (i32::from_ne_bytes(bytes), i32::from(addr.port().to_be()))
        };
        let ((service_ip, service_port), (backend_ip, backend_port)) =
            (address(SERVICE), address(BACKEND));
        let program = load(
            b"cil_sock4_conne",
            &[
                load_word(2, USER_IP4),
                skip_unless_equal(2, service_ip, 6),
                load_word(2, USER_PORT),
                skip_unless_equal(2, service_port, 4),
                set(2, backend_ip),
                store_word(USER_IP4, 2),
                set(2, backend_port),
                store_word(USER_PORT, 2),
                set(0, 1),
                instruction(0x95, 0, 0, 0, 0), // exit
            ],
        );
        let root = cgroup_root().expect("cgroup v2 is mounted");
        let cgroup = File::open(root).expect("it can be opened");
        let mut words = [
            descriptor(&program),
            descriptor(&cgroup),
            CGROUP_INET4_CONNECT,
            0,
        ];
        Self {
            _link: bpf(LINK_CREATE, &mut words).expect("it can be attached"),
        }
    }
}

fn instruction(code: u8, target: u8, source: u8, offset: i16, value: i32) -> u64 {
    let mut bytes = [code, source << 4 | target, 0, 0, 0, 0, 0, 0];
    bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
    bytes[4..].copy_from_slice(&value.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

/// `target = *(u32 *)(r1 + offset)`
fn load_word(target: u8, offset: i16) -> u64 {
    instruction(0x61, target, 1, offset, 0)
}

/// `*(u32 *)(r1 + offset) = source`
fn store_word(offset: i16, source: u8) -> u64 {
    instruction(0x63, 1, source, offset, 0)
}

/// `target = value`, 32 bits.
fn set(target: u8, value: i32) -> u64 {
    instruction(0xb4, target, 0, 0, value)
}

/// Skips instructions unless the low 32 bits are equal.
fn skip_unless_equal(register: u8, value: i32, skipped: i16) -> u64 {
    instruction(0x56, register, 0, skipped, value)
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

fn load(name: &[u8; 15], instructions: &[u64]) -> OwnedFd {
    let mut attr = LoadAttr {
        kind: PROG_TYPE_CGROUP_SOCK_ADDR,
        count: u32::try_from(instructions.len()).expect("a few"),
        instructions: instructions.as_ptr().expose_provenance() as u64,
        licence: c"GPL".as_ptr().expose_provenance() as u64,
        log: [0; 2],
        version_and_flags: [0; 2],
        name: [0; 16],
        ifindex: 0,
        expected_attach_type: CGROUP_INET4_CONNECT,
    };
    attr.name[..15].copy_from_slice(name);
    bpf(PROG_LOAD, &mut attr).expect("the kernel takes it")
}

fn bpf<A>(command: libc::c_int, attr: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: an attribute with its length, whose pointers are live in the callers; both commands answer with a new
    // descriptor.
    unsafe {
        let answer = libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<A>(),
        );
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(
            libc::c_int::try_from(answer).map_err(io::Error::other)?,
        ))
    }
}

fn descriptor(file: &impl AsRawFd) -> u32 {
    u32::try_from(file.as_raw_fd()).expect("an open descriptor is not negative")
}
