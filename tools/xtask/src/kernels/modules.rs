//! The modules that the tests need, in the order in which they must be loaded.
//!
//! Read from the modules themselves (`.modinfo`): the packages carry no index, and the guest has no kmod.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// What a node has: network devices of pods, iptables in both dialects, `sock_diag`. One that a kernel has built in, or
/// does not have, is left out.
const WANTED: [&str; 35] = [
    "veth",
    "bridge",
    "dummy",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "tls",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "iptable_nat",
    "iptable_filter",
    "iptable_mangle",
    "iptable_raw",
    "ip6table_nat",
    "ip6table_filter",
    "ip6table_mangle",
    "ip6table_raw",
    "xt_owner",
    "xt_REDIRECT",
    "xt_tcpudp",
    "xt_nat",
    "xt_conntrack",
    "xt_addrtype",
    "xt_mark",
    "xt_CT",
    "xt_comment",
    "xt_multiport",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "nft_nat",
    "nft_redir",
    "nft_ct",
    // iptables-nft needs it before Linux 5.11.
    "nft_counter",
];

/// A module and its content, unpacked.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// Reads the modules under `dir` that are wanted, and what they depend on, before them.
///
/// # Errors
///
/// When one cannot be read.
pub(super) fn read_wanted(dir: &Path) -> anyhow::Result<Vec<Module>> {
    let mut paths = BTreeMap::new();
    index(dir, &mut paths)?;
    let mut modules = Vec::new();
    for name in WANTED {
        add(name, &paths, &mut modules)?;
    }
    Ok(modules)
}

fn index(dir: &Path, paths: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("{} has no modules", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            index(&path, paths)?;
        } else if let Some((name, _)) = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.split_once(".ko"))
        {
            paths.insert(canonical(name), path.clone());
        }
    }
    Ok(())
}

/// Adds a module after its dependencies; one that is no file is built in, or of no use here.
fn add(
    name: &str,
    paths: &BTreeMap<String, PathBuf>,
    modules: &mut Vec<Module>,
) -> anyhow::Result<()> {
    let name = canonical(name);
    if modules.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let Some(path) = paths.get(&name) else {
        return Ok(());
    };
    let content = read(path)?;
    for dependency in depends(&content) {
        add(&dependency, paths, modules)?;
    }
    modules.push(Module { name, content });
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("{} could not be read", path.display()));
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(path)
        .stderr(Stdio::inherit())
        .output()
        .context("xz could not be started")?;
    ensure!(
        output.status.success(),
        "{} could not be unpacked",
        path.display()
    );
    Ok(output.stdout)
}

/// What `.modinfo` says: `depends=a,b`, between two zero bytes.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..]
        .split(|&byte| byte == 0)
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// File names have dashes where the kernel has underscores.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_from_the_module_itself() {
        let cases = [
            (
                &b"\x7fELF..\0license=GPL\0depends=llc,stp\0name=bridge\0"[..],
                vec!["llc", "stp"],
            ),
            (b"\x7fELF..\0depends=\0", vec![]),
            (b"\x7fELF..", vec![]),
        ];
        for (module, expected) in cases {
            assert_eq!(depends(module), expected);
        }
    }
}
