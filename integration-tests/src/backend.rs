//! Servers that an Envoy under test sends requests to, as threads of the test.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result, bail};

/// An HTTP/1.1 server that answers every request with 200 and the same body. Its threads end with the process.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddrV4,
}

impl Backend {
    /// Listens on a free port of loopback.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn start(body: &str) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
        let address = address_of(&listener)?;
        let length = body.len();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = answer.clone();
                thread::spawn(move || serve(stream, answer.as_bytes()));
            }
        });
        Ok(Self { address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }
}

/// A server that the kernel connects clients to and that never says a word: health checks of it do not end.
#[derive(Debug)]
pub struct SilentBackend {
    listener: TcpListener,
}

impl SilentBackend {
    /// Listens on a free port of loopback.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
        Ok(Self { listener })
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn address(&self) -> Result<SocketAddrV4> {
        address_of(&self.listener)
    }
}

fn address_of(listener: &TcpListener) -> Result<SocketAddrV4> {
    match listener.local_addr()? {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(address) => bail!("{address} is not of IPv4"),
    }
}

// Ends when the client is gone.
fn serve(stream: TcpStream, answer: &[u8]) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut writer = stream;
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            writer.write_all(answer).ok()?;
        }
    }
}
