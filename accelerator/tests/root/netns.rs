//! Network namespaces that are gone after the test.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

pub(crate) fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test enters network namespaces: run it as root"
    );
}

/// A network namespace with a pair of interfaces, removed on drop, a panic included.
pub(crate) struct Netns {
    pub(crate) name: String,
}

impl Netns {
    pub(crate) fn add(suffix: &str) -> Self {
        require_root();
        let name = format!("isthmus-t{}-{suffix}", std::process::id());
        ip(&["netns", "add", &name]);
        let netns = Self { name };
        netns.ip(&["link", "set", "lo", "up"]);
        netns.ip(&[
            "link", "add", "eth0", "type", "veth", "peer", "name", "eth1",
        ]);
        netns.ip(&["link", "set", "eth0", "up"]);
        netns
    }

    pub(crate) fn path_of(name: &str) -> PathBuf {
        Path::new("/run/netns").join(name)
    }

    pub(crate) fn give_addr(&self, addr: &str) {
        self.ip(&["addr", "add", addr, "dev", "eth0"]);
    }

    pub(crate) fn ip(&self, args: &[&str]) {
        ip(&[&["-n", &self.name], args].concat());
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // A second panic would end the process before the other namespaces are gone.
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip")
        .args(args)
        .output()
        .expect("iproute2 is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {errors}", args.join(" "));
}
