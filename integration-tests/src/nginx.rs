//! The application behind a sidecar: a real nginx with a configuration and a directory of its own.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::http::HttpConnection;
use crate::lab::Pod;
use crate::process::{Process, Program, User};
use crate::{programs, wait};

/// Port that it listens on.
pub const APPLICATION_PORT: u16 = 8080;

/// How long it may take to listen.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Path at which it answers with the address that it was asked from.
pub const SOURCE_PATH: &str = "/source";

/// Starts nginx in a pod; it answers every request with the pod's name, but for [`SOURCE_PATH`].
///
/// # Errors
///
/// When it does not start.
pub fn start(pod: &Pod) -> Result<Process> {
    let config = pod.dir.join("nginx.conf");
    fs::write(&config, render_config(pod))
        .with_context(|| format!("{} could not be written", config.display()))?;
    let mut process = Process::start(&Program {
        args: vec![
            "-e".into(),
            "stderr".into(),
            "-p".into(),
            pod.dir.clone().into(),
            "-c".into(),
            config.into(),
        ],
        log_dir: &pod.dir,
        name: "nginx",
        netns: Some(&pod.netns.path()),
        path: &programs::system("nginx")?,
        user: User::Application,
    })?;
    wait::until(&format!("nginx in {}", pod.name), START_DEADLINE, || {
        process.check_running()?;
        // On loopback, where no rule captures: the sidecar need not be there.
        let stream = pod
            .netns
            .enter(|| std::net::TcpStream::connect(("127.0.0.1", APPLICATION_PORT)))??;
        let response = HttpConnection::new(stream).request(
            "GET",
            "localhost",
            "/",
            "connection: close\r\n",
        )?;
        anyhow::ensure!(response.status == 200, "status {}", response.status);
        Ok(())
    })?;
    Ok(process)
}

fn render_config(pod: &Pod) -> String {
    let dir = pod.dir.display();
    // One process, and connections that nginx never ends by itself: a sidecar keeps a pool of them.
    format!(
        "daemon off;
master_process off;
pid {dir}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {dir}/nginx-body;
    fastcgi_temp_path {dir}/nginx-fastcgi;
    proxy_temp_path {dir}/nginx-proxy;
    scgi_temp_path {dir}/nginx-scgi;
    uwsgi_temp_path {dir}/nginx-uwsgi;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
    server {{
        listen 0.0.0.0:{APPLICATION_PORT};
        default_type text/plain;
        location / {{ return 200 \"{name}\\n\"; }}
        location = {SOURCE_PATH} {{ return 200 \"$remote_addr\\n\"; }}
    }}
}}
",
        name = pod.name
    )
}
