//! The rules that Istio itself makes of a pod's annotations, by Istio's own code: the oracle of redirection.
//!
//! The program is `peers/istio-iptables`, built by `cargo xtask setup` from the version that its `go.mod` pins.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::programs;

const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
const INTERCEPTION_MODE: &str = "sidecar.istio.io/interceptionMode";
const STATUS_PORT: &str = "status.sidecar.istio.io/port";

/// What a pod says of its redirection, in Istio's words.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodSettings {
    /// Annotations by their full names.
    pub annotations: BTreeMap<String, String>,
    /// Name servers of its `/etc/resolv.conf`.
    pub name_servers: Vec<IpAddr>,
    /// Group of its sidecar.
    pub proxy_gid: u32,
    /// `proxyMetadata` of its `proxy.istio.io/config`.
    pub proxy_metadata: BTreeMap<String, String>,
    /// User of its sidecar.
    pub proxy_uid: u32,
}

impl Default for PodSettings {
    /// A pod that says nothing, in a mesh of both address families.
    fn default() -> Self {
        let dual_stack = ("ISTIO_DUAL_STACK".to_owned(), "true".to_owned());
        Self {
            annotations: BTreeMap::new(),
            name_servers: Vec::new(),
            proxy_gid: 1337,
            proxy_metadata: [dual_stack].into(),
            proxy_uid: 1337,
        }
    }
}

impl PodSettings {
    /// The configuration that istio-cni makes of them (`cni/pkg/plugin/sidecar_redirect.go`), for a pod that has
    /// addresses of both families.
    ///
    /// Owner groups and the way DNS is captured are the pod's own, as with the `istio-init` container, which gets
    /// `proxyMetadata` as its environment.
    pub fn istio_config(&self) -> Value {
        let annotation = |name: &str, default: &str| {
            let found = self
                .annotations
                .get(&format!("traffic.sidecar.istio.io/{name}"));
            found.map_or(default, String::as_str).to_owned()
        };
        let environment = |name: &str, default: &str| {
            let found = self.proxy_metadata.get(name);
            found.map_or(default, String::as_str).to_owned()
        };
        let is_set = |name: &str| environment(name, "false") == "true";
        let reroute = "istio.io/reroute-virtual-interfaces";
        let mode = self
            .annotations
            .get(INTERCEPTION_MODE)
            .map_or("REDIRECT", String::as_str);
        let kubevirt = annotation("kubevirtInterfaces", "");
        let rerouted = self.annotations.get(reroute).unwrap_or(&kubevirt);
        let servers = |is_v4: bool| -> Vec<String> {
            let of_family = self
                .name_servers
                .iter()
                .filter(|addr| addr.is_ipv4() == is_v4);
            of_family.map(ToString::to_string).collect()
        };
        json!({
            "CAPTURE_ALL_DNS": is_set("CAPTURE_ALL_DNS"),
            "DNS_SERVERS_V4": servers(true),
            "DNS_SERVERS_V6": servers(false),
            "DROP_INVALID": is_set("INVALID_DROP"),
            "DUAL_STACK": is_set("ISTIO_DUAL_STACK"),
            "ENABLE_INBOUND_IPV6": is_set("ISTIO_DUAL_STACK"),
            "EXCLUDE_INTERFACES": annotation("excludeInterfaces", ""),
            "HOST_IPV4_LOOPBACK_CIDR": environment("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.1/32"),
            "INBOUND_INTERCEPTION_MODE": mode,
            "INBOUND_PORTS_EXCLUDE": self.excluded_inbound_ports(),
            "INBOUND_PORTS_INCLUDE": annotation("includeInboundPorts", "*"),
            "KUBE_VIRT_INTERFACES": rerouted,
            "OUTBOUND_IPRANGES_EXCLUDE": annotation("excludeOutboundIPRanges", ""),
            "OUTBOUND_IPRANGES_INCLUDE": annotation("includeOutboundIPRanges", "*"),
            "OUTBOUND_OWNER_GROUPS_EXCLUDE": environment("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", ""),
            "OUTBOUND_OWNER_GROUPS_INCLUDE": environment("ISTIO_OUTBOUND_OWNER_GROUPS", "*"),
            "OUTBOUND_PORTS_EXCLUDE": annotation("excludeOutboundPorts", "15020"),
            "OUTBOUND_PORTS_INCLUDE": annotation("includeOutboundPorts", ""),
            "PROXY_GID": self.proxy_gid.to_string(),
            "PROXY_UID": self.proxy_uid.to_string(),
            "REDIRECT_DNS": is_set("ISTIO_META_DNS_CAPTURE"),
        })
    }

    // The plugin leaves the status port out, the injector adds it.
    fn excluded_inbound_ports(&self) -> String {
        let own = self.annotations.get(EXCLUDE_INBOUND_PORTS);
        let status = self
            .annotations
            .get(STATUS_PORT)
            .filter(|port| *port != "0");
        let sidecar = "15020,15021,15090";
        [
            own.map(String::as_str),
            Some(sidecar),
            status.map(String::as_str),
        ]
        .into_iter()
        .flatten()
        .filter(|list| !list.trim().is_empty())
        .collect::<Vec<_>>()
        .join(",")
    }

    /// Whether the sidecar dials the application with the addresses of its clients.
    pub fn is_tproxy(&self) -> bool {
        let mode = self.annotations.get(INTERCEPTION_MODE);
        mode.is_some_and(|mode| mode == "TPROXY")
    }

    /// The entry of a pod in the accelerator's `NodeConfig`.
    pub fn node_config_entry(&self, name: &str, netns: &Path) -> Value {
        let mut annotations = self.annotations.clone();
        if !self.proxy_metadata.is_empty() {
            // YAML takes JSON.
            let config = json!({"proxyMetadata": self.proxy_metadata}).to_string();
            annotations.insert("proxy.istio.io/config".to_owned(), config);
        }
        json!({
            "name": name,
            "netns": netns,
            "proxyUID": self.proxy_uid,
            "proxyGID": self.proxy_gid,
            "annotations": annotations,
            "dnsServers": self.name_servers,
        })
    }
}

/// Rules of one pod, as `iptables-restore --noflush` and `ip6tables-restore --noflush` take them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rules {
    /// For IPv4.
    pub v4: String,
    /// For IPv6; empty if Istio installs none.
    pub v6: String,
}

#[derive(Deserialize)]
struct Answer {
    v4: String,
    v6: String,
    error: Option<String>,
}

/// Istio's rule maker, running.
#[derive(Debug)]
pub struct IstioIptables {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl IstioIptables {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// When `cargo xtask setup` has not built it.
    pub fn start() -> Result<Self> {
        let program = programs::library("istio-iptables")?.join("istio-iptables");
        let mut child = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} could not be started", program.display()))?;
        let questions = child.stdin.take().context("its input is a pipe")?;
        let answers = child.stdout.take().context("its output is a pipe")?;
        Ok(Self {
            child,
            questions,
            answers: BufReader::new(answers),
        })
    }

    /// The rules that Istio installs for this configuration ([`PodSettings::istio_config`]).
    ///
    /// # Errors
    ///
    /// When Istio refuses the configuration, with its reason.
    pub fn rules(&mut self, config: &Value) -> Result<Rules> {
        writeln!(self.questions, "{config}").context("istio-iptables does not read")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let answer: Answer = serde_json::from_str(&line)
            .with_context(|| format!("istio-iptables answered {line:?}"))?;
        if let Some(error) = answer.error {
            bail!("Istio refuses {config}: {error}");
        }
        Ok(Rules {
            v4: answer.v4,
            v6: answer.v6,
        })
    }
}

impl Drop for IstioIptables {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
