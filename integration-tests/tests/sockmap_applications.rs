//! Real programs as applications behind the accelerator: those that use calls which a sockmap changes work as
//! without it (`redirection.md`, section 8, case 12; a `MSG_WAITALL` reader is in `sockmap_semantics`).
//!
//! Needs root, BPF, iproute2, nginx, `haproxy` and a program in Go; fails with the reason where something is
//! missing.

#[path = "kernel_datapath/fixture.rs"]
#[allow(dead_code, reason = "shared with the suites of the other programs")]
mod fixture;

use std::{
    fs::{self, Permissions},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command},
    thread,
};

use fixture::{APP, Fixture, PATIENCE, PROXY, Pod, VIP, connect_from, original_dst, wait_until};
use isthmus_accel_abi::{Hop, PodFlags};
use isthmus_integration_tests::programs;

/// Where Istio's Envoy dials its application from.
const ENVOY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 6), 0);
/// More than any buffer on the way.
const STREAM_BYTES: usize = 8 << 20;
/// More than the buffer that nginx reads a body into, less than a socket's: all of it may be there at once.
const BODY_BYTES: usize = 100_000;
const PORT: u16 = 8080;

/// Go copies from socket to socket by `splice`.
#[test]
fn a_proxy_in_go_forwards_the_same_stream() {
    let program = programs::library("go-splice").expect("setup builds it");
    check(stream, echo, |_| {
        let mut command = Command::new(program.join("go-splice"));
        command.args([format!("0.0.0.0:{PORT}"), VIP.to_string()]);
        command
    });
}

#[test]
fn haproxy_with_splice_forwards_the_same_stream() {
    let program = programs::system("haproxy").expect("setup installs it");
    check(stream, echo, |dir| {
        let config = dir.join("haproxy.cfg");
        let text = format!(
            "defaults\n timeout connect 30s\n timeout client 30s\n timeout server 30s\n\
             listen splice\n mode tcp\n option splice-auto\n option splice-request\n \
             option splice-response\n bind 0.0.0.0:{PORT}\n server upstream {VIP}\n"
        );
        fs::write(&config, text).expect("a directory of ours");
        let mut command = Command::new(&program);
        command.arg("-db").arg("-f").arg(config);
        command
    });
}

/// nginx asks `FIONREAD` after it has filled its buffer, and believes it.
#[test]
fn nginx_reads_a_body_that_is_larger_than_its_buffer() {
    let program = programs::system("nginx").expect("setup installs it");
    check(post, count_body, |dir| {
        let at = dir.display();
        let config = dir.join("nginx.conf");
        let text = format!(
            "daemon off; master_process off; pid {at}/pid; error_log stderr;
             events {{ }}
             http {{
                 access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;
                 fastcgi_temp_path {at}/fastcgi; scgi_temp_path {at}/scgi; uwsgi_temp_path {at}/uwsgi;
                 client_max_body_size 0; client_body_buffer_size 8k;
                 server {{
                     listen 0.0.0.0:{PORT};
                     location / {{ proxy_pass http://{VIP}; }}
                 }}
             }}"
        );
        fs::write(&config, text).expect("a directory of ours");
        let mut command = Command::new(&program);
        command
            .args(["-e", "stderr", "-p"])
            .arg(dir)
            .arg("-c")
            .arg(config);
        command
    });
}

/// Runs the program in a pod that nothing governs, and in one that the accelerator does: what its caller
/// gets back must be the same.
#[track_caller]
fn check(
    call: fn(TcpStream) -> Vec<u8>,
    serve: fn(&TcpStream),
    program: impl Fn(&Path) -> Command,
) {
    let plain = Pod::alone([198, 18, 0, 1]);
    plain.ip(&["addr", "add", &format!("{}/32", VIP.ip()), "dev", "lo"]);
    let upstream = plain.listen(0, VIP);
    thread::spawn(move || serve_all(&upstream, serve));
    let expected = answer(&plain, call, &program);

    let governed = Pod::alone([198, 18, 0, 2]);
    let mut fixture = Fixture::load();
    fixture.add_pod_with(&governed, PodFlags::NONE);
    let upstream = governed.listen(PROXY, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001));
    thread::spawn(move || {
        serve_all(&upstream, move |stream| {
            assert_eq!(original_dst(stream).expect("it was redirected"), VIP);
            serve(stream);
        });
    });
    let seen = answer(&governed, call, &program);
    assert!(!expected.is_empty(), "plain TCP works");
    assert_eq!(seen.len(), expected.len());
    assert!(seen == expected, "the same bytes");
    for hop in Hop::ALL {
        assert_eq!(fixture.hop(&governed, hop).bytes_redirected, 0, "{hop:?}");
    }
}

/// Starts the program in the pod and calls it as the proxy does.
fn answer(
    pod: &Pod,
    call: fn(TcpStream) -> Vec<u8>,
    program: &impl Fn(&Path) -> Command,
) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("ours");
    let mut command = program(dir.path());
    let child = pod.run_as(APP, move || command.spawn());
    let _running = Running(child.expect("the program starts"));
    // On loopback, where nothing is captured.
    let local = SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT);
    wait_until("the program listens", || pod.connect(0, local).is_ok());
    let to = SocketAddrV4::new(pod.addr, PORT);
    pod.run_as(PROXY, move || call(connect_from(ENVOY, to)))
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        for result in [self.0.kill(), self.0.wait().map(drop)] {
            if let Err(error) = result {
                eprintln!("{:?} is left behind: {error}", self.0);
            }
        }
    }
}

fn serve_all(listener: &TcpListener, serve: impl Fn(&TcpStream) + Clone + Send + 'static) {
    for stream in listener.incoming() {
        let (stream, serve) = (stream.expect("a connection"), serve.clone());
        thread::spawn(move || serve(&stream));
    }
}

/// Sends back what it gets, until the end.
fn echo(mut stream: &TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                if stream.write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
        }
    }
}

/// Sends a stream in pieces of many sizes, and returns what comes back until the end.
fn stream(stream: TcpStream) -> Vec<u8> {
    let mut writer = stream.try_clone().expect("a descriptor");
    let writing = thread::spawn(move || {
        let (mut at, mut size) = (0, 1_usize);
        while at < STREAM_BYTES {
            size = size.wrapping_mul(1_103_515_245).wrapping_add(12_345) % 70_000;
            let end = (at + size + 1).min(STREAM_BYTES);
            let bytes: Vec<u8> = (at..end)
                .map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1])
                .collect();
            writer.write_all(&bytes).expect("the program reads");
            at = end;
        }
        writer.shutdown(Shutdown::Write).expect("it is connected");
    });
    let mut stream = stream;
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut bytes = Vec::new();
    stream
        .read_to_end(&mut bytes)
        .expect("the program forwards the end");
    writing.join().expect("everything is sent");
    assert_eq!(bytes.len(), STREAM_BYTES);
    bytes
}

/// Posts a body at once, and returns the response.
fn post(mut stream: TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let head = format!("POST / HTTP/1.0\r\nhost: test\r\ncontent-length: {BODY_BYTES}\r\n\r\n");
    let mut request = head.into_bytes();
    request.resize(request.len() + BODY_BYTES, b'x');
    stream.write_all(&request).expect("nginx reads");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("nginx answers");
    let (head, body) = response.split_once("\r\n\r\n").expect("a response");
    assert!(head.contains(" 200 "), "{head}");
    assert_eq!(body, BODY_BYTES.to_string());
    body.into()
}

/// Answers a request with the length of its body.
fn count_body(mut stream: &TcpStream) {
    let mut reader = BufReader::new(stream);
    let mut len = 0;
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|count| count > 2) {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            len = value.trim().parse().expect("a length");
        }
        line.clear();
    }
    let mut body = vec![0; len];
    // A connection that only asks whether somebody listens has no request.
    if reader.read_exact(&mut body).is_ok() && len > 0 {
        let answer = len.to_string();
        let head = format!(
            "HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        stream
            .write_all(format!("{head}{answer}").as_bytes())
            .expect("nginx reads");
    }
}
