//! A socket that another sockmap has, such as that of Envoy's own socket interface, stays with it: the connection works,
//! by TCP as far as we are concerned, and a counter tells.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::OwnedFd,
};

use isthmus_accel_abi::{Counter, Hop};

use crate::{
    fixture::{APP, Fixture, PROXY, Pod, VIP, connect_from},
    foreign::{self, SK_MSG, SOCK_OPS, op},
};

const OUTBOUND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001);
/// The local port by which the other one knows its socket: no other test uses it.
const PORT: u16 = 41_818;
/// `BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB`
const ACTIVE_ESTABLISHED: i32 = 4;
/// `bpf_sock_map_update`
const SOCK_MAP_UPDATE: i32 = 53;
/// Offset in `struct bpf_sock_ops`, in host order.
const LOCAL_PORT: i16 = 68;

#[test]
fn a_socket_of_another_sockmap_is_left_to_it_and_counted() {
    let _other = OtherSockmap::attach();
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let proxy = pod.listen(PROXY, OUTBOUND);
    let source = SocketAddrV4::new(pod.addr, PORT);
    let mut application = pod.run_as(APP, move || connect_from(source, VIP));
    let (mut accepted, _) = proxy.accept().expect("it is redirected");

    application.write_all(b"by TCP").expect("it is connected");
    let mut bytes = [0; 6];
    accepted.read_exact(&mut bytes).expect("it arrives");
    assert_eq!(&bytes, b"by TCP");
    assert_eq!(fixture.counter(Counter::SocketsTaken), 1);
    assert_eq!(fixture.counter(Counter::SocketsRefused), 0);
    assert_eq!(fixture.hop(&pod, Hop::APP_TO_PROXY).bytes_redirected, 0);
}

/// A sockmap with a program that lets every message pass, and one that puts a socket into it.
#[derive(Debug)]
struct OtherSockmap {
    _link: OwnedFd,
    _map: OwnedFd,
}

impl OtherSockmap {
    fn attach() -> Self {
        let map = foreign::sockmap();
        let pass = foreign::load(SK_MSG, b"other_sk_msg___", &[op::set(0, 1), op::exit()]);
        foreign::attach_to_map(&pass, &map, SK_MSG);

        let [key, key_at, key_down] = op::point_to_word(3, 0);
        let [map_low, map_high] = op::point_to_map(2, foreign::descriptor(&map));
        let insert = foreign::load(
            SOCK_OPS,
            b"other_sock_ops_",
            &[
                op::load_word(2, 0),
                op::skip_unless_equal(2, ACTIVE_ESTABLISHED, 9),
                op::load_word(2, LOCAL_PORT),
                op::skip_unless_equal(2, i32::from(PORT), 7),
                map_low,
                map_high,
                key,
                key_at,
                key_down,
                op::set(4, 0),
                op::call(SOCK_MAP_UPDATE),
                op::set(0, 1),
                op::exit(),
            ],
        );
        Self {
            _link: foreign::attach(&insert, SOCK_OPS),
            _map: map,
        }
    }
}
