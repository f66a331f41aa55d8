//! Section 8, case 18: a socket load balancer was there first. Either the proxy is told the service's address all the
//! same, or the accelerator stays out and says why.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::OwnedFd,
    path::Path,
};

use isthmus_accel_datapath::{
    DatapathError, Mechanism,
    linux::{DEFAULT_BPFFS, LinuxDatapath, LoadOptions, Patience, cgroup_root},
    probe,
};

use crate::{
    fixture::{APP, Fixture, PROXY, Pod, original_dst, take_out},
    foreign::{self, CONNECT4, op},
};

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
        let program = foreign::load(
            CONNECT4,
            b"cil_sock4_conne",
            &[
                op::load_word(2, USER_IP4),
                op::skip_unless_equal(2, service_ip, 6),
                op::load_word(2, USER_PORT),
                op::skip_unless_equal(2, service_port, 4),
                op::set(2, backend_ip),
                op::store_word(USER_IP4, 2),
                op::set(2, backend_port),
                op::store_word(USER_PORT, 2),
                op::set(0, 1),
                op::exit(),
            ],
        );
        Self {
            _link: foreign::attach(&program, CONNECT4),
        }
    }
}
