//! How much of small request and response traffic skips TCP, on each hop.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use isthmus_accel_abi::{Hop, HopStats, PassReason};

use crate::fixture::{APP, Fixture, PROXY, Pod, VIP, connect_from, echo, ping_pong};

const ROUNDS: u32 = 20;
const SIZE: usize = 200;
/// Clients at a time in each test: more than the machine has CPUs.
const CLIENTS: u32 = 8;
const CONNECTIONS_PER_CLIENT: u32 = 60;
const CONNECTIONS: u32 = CLIENTS * CONNECTIONS_PER_CLIENT;

#[test]
fn an_application_reaches_its_proxy_past_tcp() {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let proxy = pod.listen(PROXY, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001));
    let spent = exchange(&pod, APP, proxy, || {
        TcpStream::connect(VIP).expect("the proxy listens")
    });

    let request = fixture.hop(&pod, Hop::APP_TO_PROXY);
    let response = fixture.hop(&pod, Hop::PROXY_TO_APP_RETURN);
    eprintln!(
        "application to proxy: {spent:?} a round trip, {}",
        describe(&request)
    );
    assert_skips_tcp(&request);
    assert_stays_on_tcp(&response);
}

#[test]
fn proxies_reach_each_other_past_tcp_both_ways() {
    let (client, server) = Pod::pair();
    let mut fixture = Fixture::load();
    fixture.add_pod(&client);
    fixture.add_pod(&server);
    let inbound = server.listen(PROXY, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 15_006));
    let to = SocketAddrV4::new(server.addr, 8080);
    let spent = exchange(&client, PROXY, inbound, move || {
        TcpStream::connect(to).expect("15006 listens")
    });

    let request = fixture.hop(&client, Hop::PROXY_TO_PROXY_REQUEST);
    let response = fixture.hop(&server, Hop::PROXY_TO_PROXY_RESPONSE);
    eprintln!(
        "proxy to proxy: {spent:?} a round trip, request {}, response {}",
        describe(&request),
        describe(&response)
    );
    assert_skips_tcp(&request);
    assert_skips_tcp(&response);
}

#[test]
fn an_application_answers_its_proxy_past_tcp() {
    let pod = Pod::alone([198, 18, 0, 2]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let to = SocketAddrV4::new(pod.addr, 8080);
    // Istio's Envoy dials its application from here.
    let envoy = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 6), 0);
    let application = pod.listen(APP, to);
    let spent = exchange(&pod, PROXY, application, move || connect_from(envoy, to));

    let request = fixture.hop(&pod, Hop::PROXY_TO_APP);
    let response = fixture.hop(&pod, Hop::APP_TO_PROXY_RETURN);
    eprintln!(
        "proxy to application: {spent:?} a round trip, response {}",
        describe(&response)
    );
    assert_stays_on_tcp(&request);
    assert_skips_tcp(&response);
}

/// Lets [`CLIENTS`] threads of the pod talk to whoever accepts; returns the time of a round trip.
fn exchange(
    pod: &Pod,
    id: u32,
    listener: TcpListener,
    connect: impl Fn() -> TcpStream + Clone + Send + 'static,
) -> Duration {
    let server = thread::spawn(move || {
        for _ in 0..CONNECTIONS {
            let (stream, _) = listener.accept().expect("a connection");
            stream.set_nodelay(true).expect("TCP");
            thread::spawn(move || echo(stream, SIZE));
        }
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let connect = connect.clone();
            pod.spawn_as(id, id, move || {
                let mut spent = Duration::ZERO;
                for _ in 0..CONNECTIONS_PER_CLIENT {
                    let mut stream = connect();
                    stream.set_nodelay(true).expect("TCP");
                    spent += ping_pong(&mut stream, SIZE, ROUNDS);
                }
                spent / CONNECTIONS_PER_CLIENT
            })
        })
        .collect();
    let spent: Duration = clients
        .into_iter()
        .map(|client| client.join().expect("it ends"))
        .sum();
    server.join().expect("the server ends");
    spent / CLIENTS
}

fn describe(stats: &HopStats) -> String {
    let passes = PassReason::ALL
        .into_iter()
        .filter(|reason| stats.passes[reason.index()] > 0)
        .map(|reason| format!(", {} {}", reason.name(), stats.passes[reason.index()]));
    let per_mille = stats.bytes_redirected * 1_000 / stats.bytes_total.max(1);
    format!(
        "{}.{} % redirected{}",
        per_mille / 10,
        per_mille % 10,
        passes.collect::<String>()
    )
}

fn assert_skips_tcp(stats: &HopStats) {
    assert_eq!(stats.connections, u64::from(CONNECTIONS));
    assert_eq!(
        stats.bytes_total,
        u64::from(CONNECTIONS * ROUNDS) * SIZE as u64
    );
    assert!(
        stats.bytes_redirected * 100 >= stats.bytes_total * 95,
        "{}",
        describe(stats)
    );
}

fn assert_stays_on_tcp(stats: &HopStats) {
    assert_eq!(
        stats.bytes_total,
        u64::from(CONNECTIONS * ROUNDS) * SIZE as u64
    );
    assert_eq!(stats.bytes_redirected, 0, "an application reads by TCP");
    assert_eq!(
        stats.passes[PassReason::ReaderIsApp.index()],
        u64::from(CONNECTIONS * ROUNDS)
    );
}
