//! A running server on a directory of its own, and its admin endpoint.
#![allow(dead_code, reason = "each program of tests uses a part of it")]

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use isthmus_xds::Plane;
use isthmus_xds::cli::Cli;
use isthmus_xds::server::Server;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

/// Nothing here takes a second; a busy machine may.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Running {
    pub(crate) dir: TempDir,
    pub(crate) plane: Arc<Plane>,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) served: JoinHandle<()>,
    pub(crate) xds: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Running {
    /// Serves `document`, once it is read; without one, a server that is not ready.
    pub(crate) async fn start(document: Option<&str>, more_args: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        if let Some(document) = document {
            fs::write(dir.path().join("a.yaml"), document).unwrap();
        }
        let any = "127.0.0.1:0";
        let args = ["isthmus-xds", "--xds-listen", any, "--admin-listen", any];
        let config_dir = ["--config-dir", dir.path().to_str().unwrap()];
        let args = args.iter().chain(&config_dir).chain(more_args);
        let server = Server::bind(&Cli::parse_from(args)).await.unwrap();
        let (xds, admin) = (server.xds_addr().unwrap(), server.admin_addr().unwrap());
        let plane = server.plane();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let stop = async { stopped.await.unwrap_or(()) };
            server.serve(stop).await.unwrap();
        });
        let running = Self {
            dir,
            plane,
            stop: Some(stop),
            served: task,
            xds,
            admin,
        };
        if document.is_some() {
            running
                .wait_for("/readyz", |answer| answer.contains("200 OK"))
                .await;
        }
        running
    }

    /// Replaces the document, whole.
    pub(crate) fn write(&self, document: &str) {
        let dir = self.dir.path();
        fs::write(dir.join(".part"), document).unwrap();
        fs::rename(dir.join(".part"), dir.join("a.yaml")).unwrap();
    }

    pub(crate) async fn get(&self, path: &str) -> String {
        self.exchange("GET", path, "").await
    }

    /// Asks the admin endpoint, with lines of headers of its own.
    pub(crate) async fn exchange(&self, method: &str, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Returns the answer of the admin endpoint once it is as wanted.
    pub(crate) async fn wait_for(&self, path: &str, is_it: impl Fn(&str) -> bool) -> String {
        let seen = async {
            loop {
                let answer = self.get(path).await;
                if is_it(&answer) {
                    return answer;
                }
                tokio::task::yield_now().await;
            }
        };
        let seen = tokio::time::timeout(PATIENCE, seen).await;
        seen.expect("the server gets there")
    }

    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.xds)).unwrap();
        endpoint.connect().await.unwrap()
    }
}
