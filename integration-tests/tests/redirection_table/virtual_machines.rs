//! Row I2 beyond the table: what else goes over the interface of a virtual machine, and what changes meanwhile.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use isthmus_integration_tests::shell;

use crate::fixture::{APP, PATIENCE, PROXY, Pod};
use crate::modes::{Mode, Redirection};
use crate::net::{Addr, Family, NO_MAPPED, Net};
use crate::row::row;
use crate::servers::{OUTBOUND_PORT, original_dst};
use crate::socket;

const SERVICE_PORT: u16 = 80;
/// What the virtual machine serves.
const SSH_PORT: u16 = 22;

/// A connection to a virtual machine is forwarded, and so is what it answers: its packets come in by the same
/// interface as those that it dials with, and a route by the interface alone would keep them in the pod.
#[test]
fn who_dials_a_virtual_machine_is_answered() {
    let net = Net::new();
    let listeners = ANY.map(|addr| listen(&net.vm, APP, addr, SSH_PORT));
    let _sidecar = ANY.map(|addr| listen(&net.pod, PROXY, addr, OUTBOUND_PORT));
    for mode in [Mode::AcceleratorAlone, Mode::IptablesAlone, Mode::Both] {
        let mut redirection = Redirection::new(&net, mode);
        redirect(&mut redirection);
        for (family, listener) in NO_MAPPED.iter().zip(&listeners) {
            let to = SocketAddr::new(Addr::Vm.of(*family), SSH_PORT);
            let mut client = net.world.connect(APP, to).expect("it is forwarded");
            let (mut server, _) = listener.accept().expect("the dial came here");
            for _ in 0..3 {
                carry(&mut client, &mut server);
                carry(&mut server, &mut client);
            }
        }
    }
}

/// A sidecar that starts, or starts again, after the pod was loaded: its listener is one that the agent has to
/// grant what the pod's addresses do not.
#[test]
fn a_sidecar_that_comes_late_is_given_what_virtual_machines_send() {
    let net = Net::new();
    let mut redirection = Redirection::new(&net, Mode::AcceleratorAlone);
    redirect(&mut redirection);
    for life in ["first", "second"] {
        for (family, any) in NO_MAPPED.iter().zip(ANY) {
            let to = SocketAddr::new(Addr::Vip.of(*family), SERVICE_PORT);
            let is_refused = net.vm.run_as(APP, move || {
                TcpStream::connect_timeout(&to, Duration::from_millis(200)).is_err()
            });
            assert!(
                is_refused,
                "{family:?}, {life}: nothing goes past the sidecar"
            );

            let sidecar = listen(&net.pod, PROXY, any, OUTBOUND_PORT);
            let start = Instant::now();
            // A SYN comes again after 1, 3 and 7 seconds.
            let client = net.vm.connect(APP, to).expect("the sidecar answers");
            println!(
                "{family:?}, {life}: after {} ms",
                start.elapsed().as_millis()
            );
            check(client, &sidecar, to);
        }
    }
}

/// Nothing is left in the namespace of a pod that has no virtual machines any more, nor after `detach`.
#[test]
fn no_rule_or_route_is_left_behind() {
    let net = Net::new();
    let _sidecar = ANY.map(|addr| listen(&net.pod, PROXY, addr, OUTBOUND_PORT));
    // As a container has one: `detach` finds namespaces by their processes.
    let _process = net.pod.run_as(0, InPod::start);
    let mut redirection = Redirection::new(&net, Mode::AcceleratorAlone);
    for end in ["annotation", "detach"] {
        redirect(&mut redirection);
        let with = routing(&net.pod);
        assert_eq!(with.lines().count(), 4, "two rules, two routes: {with}");
        if end == "annotation" {
            assert_eq!(redirection.apply(&row("I2").settings), None);
            assert_eq!(routing(&net.pod), "");
        }
    }
    drop(redirection);
    assert_eq!(routing(&net.pod), "");

    let to = SocketAddr::new(Addr::Vip.of(Family::V4), SERVICE_PORT);
    let world = listen(&net.world, 0, ANY[0], SERVICE_PORT);
    let mut client = net.vm.connect(APP, to).expect("it is forwarded");
    let (mut server, _) = world.accept().expect("the dial came here");
    carry(&mut client, &mut server);
}

/// A process that waits.
struct InPod(Child);

impl InPod {
    fn start() -> Self {
        let child = Command::new("sleep").arg("600").spawn();
        Self(child.expect("a process can be started"))
    }
}

impl Drop for InPod {
    fn drop(&mut self) {
        self.0.kill().expect("it waits");
        self.0.wait().expect("it is ours");
    }
}

const ANY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    IpAddr::V6(Ipv6Addr::UNSPECIFIED),
];

fn redirect(redirection: &mut Redirection<'_>) {
    let row = row("I2").annotation("kubevirtInterfaces", "k6t0");
    // Istio's rules capture what is forwarded to the virtual machine, too.
    let row = row.annotation("excludeInboundPorts", "22");
    assert_eq!(redirection.apply(&row.settings), None);
}

// Ports below 1024 need root; whose a socket is, who made it.
fn listen(pod: &Pod, id: u32, addr: IpAddr, port: u16) -> TcpListener {
    let id = if port < 1024 { 0 } else { id };
    pod.run_as(id, move || socket::listen(SocketAddr::new(addr, port)))
}

fn check(mut client: TcpStream, sidecar: &TcpListener, to: SocketAddr) {
    let (mut accepted, from) = sidecar.accept().expect("the dial came here");
    assert_eq!(client.peer_addr().expect("it is connected"), to);
    assert_eq!(client.local_addr().expect("it is connected"), from);
    assert_eq!(original_dst(&accepted, from), to.to_string());
    carry(&mut client, &mut accepted);
    carry(&mut accepted, &mut client);
}

fn carry(from: &mut TcpStream, to: &mut TcpStream) {
    to.set_read_timeout(Some(PATIENCE))
        .expect("a timeout can be set");
    let mut bytes = [0; 5];
    from.write_all(b"bytes").expect("it is open");
    to.read_exact(&mut bytes).expect("they arrive");
    assert_eq!(&bytes, b"bytes");
}

// The agent's rules and routes.
fn routing(pod: &Pod) -> String {
    let text = pod.run_as(0, || {
        let show = |args: &[&str]| {
            let text = shell::capture(Command::new("ip").args(args));
            text.unwrap_or_else(|error| panic!("{error:#}"))
        };
        [
            &["-4", "rule"][..],
            &["-6", "rule"],
            &["-4", "route", "show", "table", "all"],
            &["-6", "route", "show", "table", "all"],
        ]
        .map(show)
        .join("\n")
    });
    let ours = text.lines().filter(|line| line.contains("15001"));
    ours.collect::<Vec<_>>().join("\n")
}
