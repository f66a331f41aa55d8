//! Behaviours that anchors got wrong, under the numbers that the accelerator's contract gives them.
//!
//! Where a row of the table is the whole case, the row lives here.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;

use crate::check;
use crate::dial::{self, Seen};
use crate::fixture::{APP, PATIENCE, PROXY};
use crate::modes::{Mode, Redirection};
use crate::net::{Addr, Family, NO_MAPPED, Net, Place, V4_ONLY};
use crate::outbound::OWN_RANGES;
use crate::row::{app, arriving, proxy, row};
use crate::servers::{INBOUND_PORT, OUTBOUND_PORT, original_dst};
use crate::socket;

/// The accelerator first, in namespaces that never had a table of iptables.
const MODES: [Mode; 3] = [Mode::AcceleratorAlone, Mode::IptablesAlone, Mode::Both];

/// Every row checks what the client sees; these are the calls that an application makes.
#[test]
fn case_01_an_application_sees_whom_it_dialled() {
    check(&[row("1: a service, another pod, the pod itself").dials([
        app(Addr::Vip, 80).is_outbound(),
        app(Addr::Peer, 8080).is_outbound(),
        proxy(Addr::Pod, 8080).is_inbound(),
        proxy(Addr::Peer, 8080).is_inbound_at_peer(),
    ])]);
}

/// Application, sidecar, sidecar again, application: the middle is what keeps mTLS on the way, which
/// `own_service.rs` shows with a real Envoy.
#[test]
fn case_03_a_call_to_the_own_service_passes_the_sidecar_twice() {
    let net = Net::new();
    for mode in MODES {
        let mut redirection = Redirection::new(&net, mode);
        let left_alone = redirection.apply(&row("3").settings);
        assert_eq!(left_alone, None, "{mode:?}");
        for family in NO_MAPPED {
            let (vip, own) = (Addr::Vip.of(*family), Addr::Pod.of(*family));
            let (vip, own) = (SocketAddr::new(vip, 80), SocketAddr::new(own, 8080));
            let expected = format!(
                "hello, out by {vip}, in by {own}, answered to {}\n",
                Addr::EnvoySource.of(*family)
            );
            assert_eq!(call_own_service(&net, *family), expected, "{mode:?}");
        }
    }
}

fn call_own_service(net: &Net, family: Family) -> String {
    let (vip, own) = (Addr::Vip.of(family), Addr::Pod.of(family));
    let any = if family == Family::V4 {
        "0.0.0.0"
    } else {
        "[::]"
    };
    let listen = move |port: u16| {
        let at: SocketAddr = format!("{any}:{port}").parse().expect("an address");
        move || socket::listen(at)
    };
    let [outbound, inbound] =
        [OUTBOUND_PORT, INBOUND_PORT].map(|port| net.pod.run_as(PROXY, listen(port)));
    let application = net.pod.run_as(APP, listen(8080));
    // The sidecar has the service's only endpoint from its control plane, and finds the application by
    // the original destination.
    let endpoint = SocketAddr::new(own, 8080);
    let relays = [
        relay(net, outbound, "out", None, endpoint),
        relay(net, inbound, "in", Some(Addr::EnvoySource), endpoint),
        net.pod.spawn_as(APP, APP, move || {
            let (stream, from) = application.accept().expect("a connection");
            let line = read_line(&stream);
            write_line(&stream, &format!("{line}, answered to {}", from.ip()));
        }),
    ];
    let answer = net.pod.run_as(APP, move || {
        let stream = TcpStream::connect((vip, 80)).expect("the sidecar listens");
        write_line(&stream, "hello");
        let mut answer = String::new();
        (&stream).read_to_string(&mut answer).expect("an answer");
        answer
    });
    for relay in relays {
        relay.join().expect("the connection came this way");
    }
    answer
}

// Takes one connection, and passes a line on and the answer back.
fn relay(
    net: &Net,
    listener: TcpListener,
    name: &'static str,
    source: Option<Addr>,
    to: SocketAddr,
) -> JoinHandle<()> {
    net.pod.spawn_as(PROXY, PROXY, move || {
        let (downstream, from) = listener.accept().expect("a connection");
        let original = original_dst(&downstream, from);
        let line = read_line(&downstream);
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let upstream = socket::socket(family, libc::SOCK_STREAM);
        if let Some(source) = source {
            socket::bind(&upstream, SocketAddr::new(source.of(family), 0), family);
        }
        dial::connect(&upstream, to, family).expect("somebody listens");
        let upstream = TcpStream::from(upstream);
        write_line(&upstream, &format!("{line}, {name} by {original}"));
        write_line(&downstream, &read_line(&upstream));
    })
}

fn read_line(stream: &TcpStream) -> String {
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout can be set");
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .expect("the other end writes");
    line.trim_end().to_owned()
}

fn write_line(mut stream: &TcpStream, line: &str) {
    writeln!(stream, "{line}").expect("the other end reads");
}

/// Row O2.
#[test]
fn case_04_envoys_dials_to_the_application_are_never_captured_again() {
    let to_application = |addr| app(addr, 8080).by(PROXY, PROXY).bound_to(Addr::EnvoySource);
    check(&[
        row("4: bound to Envoy's own source").dials([
            to_application(Addr::Pod).is_direct(),
            to_application(Addr::PodByEth1).is_direct(),
            to_application(Addr::Loopback).is_direct(),
            app(Addr::Pod, 8080).bound_to(Addr::EnvoySource).is_direct(),
        ]),
        row("4: also where loopback is captured")
            .annotation("includeOutboundIPRanges", OWN_RANGES)
            .dials([
                to_application(Addr::Pod).is_direct(),
                app(Addr::Pod, 8080).bound_to(Addr::EnvoySource).is_direct(),
                app(Addr::OtherLoopback, 8080)
                    .bound_to(Addr::EnvoySource)
                    .only(V4_ONLY)
                    .is_direct(),
                app(Addr::Pod, 8080).is_outbound(),
            ]),
    ]);
}

/// Rows O5 and O8.
#[test]
fn case_05_the_sidecars_user_and_group_are_exempt_and_nobody_elses() {
    check(&[
        row("5: Istio's own").dials([
            proxy(Addr::Vip, 80).is_direct(),
            proxy(Addr::Vip, 80).by(PROXY, 1000).is_direct(),
            proxy(Addr::Vip, 80).by(0, PROXY).is_direct(),
            proxy(Addr::Vip, 8080).udp().is_direct(),
        ]),
        row("5: another user and group").sidecar(2000, 3000).dials([
            app(Addr::Vip, 80).by(2000, 3000).is_direct(),
            app(Addr::Vip, 80).by(2000, 1000).is_direct(),
            app(Addr::Vip, 80).by(0, 3000).is_direct(),
            app(Addr::Vip, 80).by(PROXY, PROXY).is_outbound(),
            app(Addr::Pod, 8080).by(2000, 1000).is_inbound(),
        ]),
        row("5: whom nobody governs").dials([
            app(Addr::Vip, 80)
                .by(PROXY, PROXY)
                .from(Place::World)
                .is_direct(),
            app(Addr::Vip, 80).from(Place::World).is_direct(),
        ]),
    ]);
}

/// Rows I7, O12, and lists as people write them.
#[test]
fn case_06_lists_mean_what_istio_takes_them_for() {
    check(&[
        row("6: a listed port is captured whatever the address")
            .annotation("includeOutboundPorts", ", 9300")
            .annotation("includeOutboundIPRanges", "198.19.7.0/24,fd19:7::/32")
            .dials([
                app(Addr::OtherRange, 9300).is_outbound(),
                app(Addr::OtherRange, 80).is_direct(),
                app(Addr::Vip, 80).is_outbound(),
            ]),
        row("6: an empty list captures nothing")
            .annotation("includeInboundPorts", "")
            .dials([
                arriving(Addr::Pod, 8080).is_direct(),
                proxy(Addr::Pod, 8080).from(Place::Peer).is_direct(),
                app(Addr::Vip, 80).is_outbound(),
            ]),
        row("6: blanks and empty items")
            .annotation("excludeInboundPorts", ", 9300")
            .dials([
                arriving(Addr::Pod, 9300).is_direct(),
                arriving(Addr::Pod, 8080).is_inbound(),
            ]),
    ]);
}

#[test]
fn case_07_a_sidecar_that_starts_late_is_found_as_soon_as_it_listens() {
    let net = Net::new();
    for mode in MODES {
        let mut redirection = Redirection::new(&net, mode);
        assert_eq!(redirection.apply(&row("7").settings), None, "{mode:?}");
        let dials = [
            (app(Addr::Vip, 80), OUTBOUND_PORT),
            (arriving(Addr::Pod, 8080), INBOUND_PORT),
        ];
        for (dialled, port) in dials {
            for family in NO_MAPPED {
                refused_then_answered(&net, &dialled, port, *family, mode);
            }
        }
    }
}

fn refused_then_answered(net: &Net, dialled: &dial::Dial, port: u16, family: Family, mode: Mode) {
    // The application listens all the time: nothing may reach it past its sidecar.
    let any = if family == Family::V4 {
        "0.0.0.0"
    } else {
        "[::]"
    };
    let at = |port: u16| -> SocketAddr { format!("{any}:{port}").parse().expect("an address") };
    let _application = net.pod.run_as(APP, {
        let at = at(8080);
        move || socket::listen(at)
    });
    let what = format!("{mode:?}, {family:?}, {port}");
    for _ in 0..3 {
        let seen = dial::dial(net, dialled, family);
        let Seen::Failed("connect", error) = &seen else {
            panic!("{what}: nobody listens, but {seen:?}");
        };
        assert!(error.starts_with("Connection refused"), "{what}: {error}");
    }
    let listener = net.pod.run_as(PROXY, {
        let at = at(port);
        move || socket::listen(at)
    });
    let sidecar = net.pod.spawn_as(PROXY, PROXY, move || {
        let (stream, from) = listener.accept().expect("a connection");
        let original = original_dst(&stream, from);
        write_line(&stream, &format!("hello late {from} {original}"));
        // Its greeting: what is unread would reset the connection.
        (&stream).read_exact(&mut [0; 5]).expect("a greeting");
    });
    let Seen::Answered { original, .. } = dial::dial(net, dialled, family) else {
        panic!("{what}: the sidecar listens");
    };
    sidecar.join().expect("it was asked");
    assert_eq!(
        original.trim_end(),
        dialled.target(family).to_string(),
        "{what}"
    );
}
