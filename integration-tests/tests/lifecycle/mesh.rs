//! Two pods with a cable between them and Istio's rules, and threads that play their sidecars and the
//! server's application.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use isthmus_accel_abi::v4_mapped;
use isthmus_accel_datapath::{linux::DEFAULT_BPFFS, netns_cookie};
use isthmus_integration_tests::{
    iptables::{self, Capture},
    netns::{self, NETNS_DIR, Netns},
    process::User,
    shell,
    wait::{self, Hopeless},
};
use rustix::{
    net::sockopt::ip_original_dst,
    process::{Gid, Uid},
    thread::{set_thread_res_gid, set_thread_res_uid},
};

use crate::agent::take_out;

/// What the client's application dials: an address that nobody has.
pub(crate) const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 19, 7, 9), 80);
/// Size of a request, and of its answer.
pub(crate) const MESSAGE_BYTES: usize = 64;
/// Longest time that any call on a socket may take, on a machine that is busy with others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Where the server's application listens.
const APPLICATION_PORT: u16 = 8080;
/// What the server's sidecar keeps without reading from it.
const IDLE_PORT: u16 = 9000;
/// Namespaces of this program, with the id of the process behind it.
const PREFIX: &str = "isthmus-life-";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Two pods and everything that listens in them. The threads end with the process.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) client: Netns,
    pub(crate) server: Netns,
    pub(crate) name: String,
    kept: Arc<Mutex<Vec<TcpStream>>>,
    pub(crate) faults: Faults,
}

/// What went wrong on any thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults(Arc<Mutex<Vec<String>>>);

impl Faults {
    pub(crate) fn note(&self, who: &str, outcome: Result<()>) {
        if let Err(error) = outcome {
            let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            faults.push(format!("{who}: {error:#}"));
        }
    }

    /// Fails if anything did.
    pub(crate) fn check(&self) -> Result<()> {
        let faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.is_empty() {
            return Ok(());
        }
        Err(Hopeless(faults.join("; ")).into())
    }
}

impl Mesh {
    pub(crate) fn start() -> Result<Self> {
        remove_leftovers();
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{id}", std::process::id());
        let client = Netns::create(&format!("{name}-c"))?;
        let server = Netns::create(&format!("{name}-s"))?;
        client.ip(&[
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            server.name(),
        ])?;
        for (pod, address) in [(&client, CLIENT), (&server, SERVER)] {
            pod.ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"])?;
            pod.ip(&["link", "set", "eth0", "up"])?;
            pod.ip(&["route", "add", "default", "dev", "eth0"])?;
            iptables::install(pod, &Capture::default())?;
        }
        let mesh = Self {
            client,
            server,
            name,
            kept: Arc::default(),
            faults: Faults::default(),
        };
        mesh.serve_all()?;
        Ok(mesh)
    }

    /// Cookies and addresses of both pods.
    pub(crate) fn pods(&self) -> Result<[(u64, [u8; 16]); 2]> {
        let cookie = |pod: &Netns| -> Result<u64> {
            let socket = pod.enter(|| UdpSocket::bind("127.0.0.1:0"))??;
            Ok(netns_cookie(socket.as_fd())?)
        };
        Ok([
            (cookie(&self.client)?, v4_mapped(CLIENT.octets())),
            (cookie(&self.server)?, v4_mapped(SERVER.octets())),
        ])
    }

    /// The rules of both pods, without their counters.
    pub(crate) fn rules(&self) -> Result<Vec<String>> {
        let rules = [&self.client, &self.server].map(|pod| {
            let text = shell::capture(&mut pod.command("iptables-save"))?;
            let rules = text.lines().filter(|line| line.starts_with("-A"));
            Ok(rules.map(str::to_owned).collect())
        });
        let rules: Result<Vec<Vec<String>>> = rules.into_iter().collect();
        Ok(rules?.concat())
    }

    /// Connections of the client's application that met the rule.
    pub(crate) fn redirects_by_iptables(&self) -> Result<u64> {
        iptables::outbound_redirects(&self.client)
    }

    /// A connection between the sidecars: the client's end, and the server's, which nobody reads.
    pub(crate) fn connect_idle(&self) -> Result<(TcpStream, TcpStream)> {
        let path = self.client.path();
        let near = thread::spawn(move || -> Result<TcpStream> {
            become_user_in(&path, User::Proxy)?;
            connect(SocketAddrV4::new(SERVER, IDLE_PORT))
        });
        let near = near.join().expect("the thread does not panic")?;
        let local = near.local_addr()?;
        let far = wait::until("the other end", PATIENCE, || {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let at = kept
                .iter()
                .position(|stream| stream.peer_addr().is_ok_and(|peer| peer == local));
            at.map(|at| kept.swap_remove(at))
                .context("it is not accepted yet")
        })?;
        Ok((near, far))
    }

    fn serve_all(&self) -> Result<()> {
        self.serve(&self.server, User::Application, APPLICATION_PORT, answer)?;
        self.serve(
            &self.client,
            User::Proxy,
            iptables::OUTBOUND_PORT,
            |stream| {
                let original = ip_original_dst(&stream).context("the outbound sidecar asks")?;
                ensure!(original == VIP, "the outbound sidecar was told {original}");
                let server = SocketAddrV4::new(SERVER, APPLICATION_PORT);
                relay(stream, connect(server)?)
            },
        )?;
        let kept = Arc::clone(&self.kept);
        self.serve(
            &self.server,
            User::Proxy,
            iptables::INBOUND_PORT,
            move |stream| {
                let original = ip_original_dst(&stream).context("the inbound sidecar asks")?;
                ensure!(
                    *original.ip() == SERVER,
                    "the inbound sidecar was told {original}"
                );
                if original.port() == IDLE_PORT {
                    kept.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(stream);
                    return Ok(());
                }
                let application = SocketAddrV4::new(Ipv4Addr::LOCALHOST, original.port());
                relay(stream, connect(application)?)
            },
        )
    }

    fn serve(
        &self,
        pod: &Netns,
        user: User,
        port: u16,
        handle: impl Fn(TcpStream) -> Result<()> + Send + Sync + 'static,
    ) -> Result<()> {
        let (path, faults) = (pod.path(), self.faults.clone());
        let handle = Arc::new(handle);
        let listener = pod.enter(|| TcpListener::bind((IpAddr::from([0, 0, 0, 0]), port)))??;
        thread::spawn(move || {
            become_user_in(&path, user).expect("root can");
            for stream in listener.incoming() {
                let (handle, faults) = (Arc::clone(&handle), faults.clone());
                // The namespace and the user go over to threads that this one makes.
                thread::spawn(move || {
                    let outcome = stream.map_err(Into::into).and_then(|stream| {
                        prepare(&stream)?;
                        handle(stream)
                    });
                    faults.note(&format!("port {port}"), outcome);
                });
            }
        });
        Ok(())
    }
}

const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 2);

/// Moves this thread into a namespace and makes it that user, for the rest of its life.
pub(crate) fn become_user_in(netns: &Path, user: User) -> Result<()> {
    block_child_signals();
    netns::enter_thread(netns)?;
    if let Some(id) = user.ids() {
        let (gid, uid) = (Gid::from_raw(id), Uid::from_raw(id));
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
    }
    Ok(())
}

/// Keeps the ends of agents from this thread, as from a process in a pod. A read that waits on a socket in
/// the sockmap would end with `EAGAIN` (Linux 6.18, `tcp_bpf_recvmsg`); Envoy's never wait.
fn block_child_signals() {
    // SAFETY: a set of signals is plain memory, which `sigemptyset` makes valid.
    unsafe {
        let mut signals = std::mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGCHLD);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut());
    }
}

pub(crate) fn connect(to: SocketAddrV4) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
    prepare(&stream)?;
    Ok(stream)
}

fn prepare(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(())
}

/// The application: gives back what it gets.
fn answer(mut stream: TcpStream) -> Result<()> {
    let mut message = [0; MESSAGE_BYTES];
    while read_message(&mut stream, &mut message)? {
        stream.write_all(&message)?;
    }
    Ok(())
}

/// A sidecar: hands each request on and its answer back.
fn relay(mut down: TcpStream, mut up: TcpStream) -> Result<()> {
    let mut message = [0; MESSAGE_BYTES];
    while read_message(&mut down, &mut message)? {
        up.write_all(&message)?;
        ensure!(read_message(&mut up, &mut message)?, "closed early");
        down.write_all(&message)?;
    }
    Ok(())
}

/// Reads one whole message; `false` at the end of the stream.
pub(crate) fn read_message(stream: &mut TcpStream, message: &mut [u8]) -> Result<bool> {
    let mut at = 0;
    while at < message.len() {
        match stream.read(&mut message[at..])? {
            0 if at == 0 => return Ok(false),
            0 => anyhow::bail!("the stream ends after {at} bytes of a message"),
            count => at += count,
        }
    }
    Ok(true)
}

/// Removes the namespaces and pins of killed processes.
fn remove_leftovers() {
    for name in leftovers(NETNS_DIR) {
        if let Err(error) = netns::remove(&name) {
            eprintln!("{name} stays: {error:#}");
        }
    }
    for name in leftovers(DEFAULT_BPFFS) {
        take_out(&Path::new(DEFAULT_BPFFS).join(name));
    }
}

fn leftovers(dir: &str) -> Vec<String> {
    let is_left = |name: &String| {
        let rest = name.strip_prefix(PREFIX);
        let pid = rest.and_then(|rest| rest.split('-').next());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    };
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(is_left)
        .collect()
}
