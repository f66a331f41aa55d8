//! How much of small request and response traffic skips TCP.

use std::net::{Ipv4Addr, SocketAddrV4};

use isthmus_accel_abi::{Hop, PassReason};

use crate::fixture::{APP, Fixture, PROXY, Pod, VIP, echo, ping_pong};

const CONNECTIONS: u32 = 300;
const ROUNDS: u32 = 20;
const SIZE: usize = 200;

#[test]
fn an_application_reaches_its_proxy_past_tcp() {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let listener = pod.listen(PROXY, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001));
    let proxy = pod.spawn_as(PROXY, PROXY, move || {
        for _ in 0..CONNECTIONS {
            let (stream, _) = listener.accept().expect("a connection");
            std::thread::spawn(move || echo(stream, SIZE));
        }
    });
    let spent = pod.run_as(APP, move || {
        let mut spent = std::time::Duration::ZERO;
        for _ in 0..CONNECTIONS {
            let mut stream = std::net::TcpStream::connect(VIP).expect("the proxy listens");
            stream.set_nodelay(true).expect("TCP");
            spent += ping_pong(&mut stream, SIZE, ROUNDS);
        }
        spent / CONNECTIONS
    });
    proxy.join().expect("the proxy is fine");
    let request = fixture.hop(&pod, Hop::APP_TO_PROXY);
    let response = fixture.hop(&pod, Hop::PROXY_TO_APP_RETURN);
    eprintln!("round trip {spent:?}\nrequest {request:?}\nresponse {response:?}");
    assert_eq!(request.connections, u64::from(CONNECTIONS));
    assert_eq!(response.bytes_redirected, 0, "an application reads by TCP");
    assert_eq!(response.passes[PassReason::ReaderIsApp.index()], u64::from(CONNECTIONS * ROUNDS));
    assert!(request.bytes_redirected * 100 >= request.bytes_total * 95);
}
