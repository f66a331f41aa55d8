//! The initramfs: programs with the libraries that they are linked to, the kernel's modules, and the plan.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::archive::{KernelFiles, capture};
use super::cpio::Cpio;
use super::modules;
use super::suite::{ISTIO, Programs};
use crate::workspace::find_program;

/// What the tests run. `cargo xtask setup` installs them.
const SYSTEM_PROGRAMS: [&str; 10] = [
    "bpftool",
    "ip",
    "ip6tables",
    "ip6tables-restore",
    "iptables",
    "iptables-restore",
    "nsenter",
    "setpriv",
    "sh",
    "ss",
];

/// Where iptables keeps its matches and targets.
const XTABLES: &str = "/usr/lib/x86_64-linux-gnu/xtables";

/// Makes the part that is the same for all kernels.
///
/// # Errors
///
/// When a program is missing.
pub(super) fn base(programs: &Programs) -> anyhow::Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    // The kernel opens it for init before anything is mounted.
    cpio.device(Path::new("/dev/console"), 5, 1);
    for dir in ["/proc", "/sys", "/run", "/tmp", "/var/run"] {
        cpio.dir(Path::new(dir));
    }
    cpio.file(
        Path::new("/etc/passwd"),
        b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    );
    cpio.file(Path::new("/etc/group"), b"root:x:0:\nnogroup:x:65534:\n");

    let mut linked = BTreeSet::new();
    for name in SYSTEM_PROGRAMS {
        let path = find_program(name)
            .with_context(|| format!("{name} is missing: run `cargo xtask setup`"))?;
        let real = fs::canonicalize(&path)?;
        add_file(&mut cpio, &real)?;
        linked.insert(real.clone());
        cpio.link(&Path::new("/bin").join(name), &real.to_string_lossy());
    }
    for dir in [Path::new(XTABLES), &programs.data] {
        for file in fs::read_dir(dir).into_iter().flatten().flatten() {
            add_file(&mut cpio, &file.path())?;
        }
    }
    add_as(&mut cpio, Path::new("/init"), &programs.init)?;
    linked.insert(programs.init.clone());
    let istio = Path::new("/tools").join(ISTIO);
    add_as(&mut cpio, &istio, &programs.istio)?;
    linked.insert(programs.istio.clone());
    for (name, path) in &programs.others {
        add_as(&mut cpio, &Path::new("/bin").join(name), path)?;
        linked.insert(path.clone());
    }
    for library in libraries(&linked)? {
        add_file(&mut cpio, &library)?;
    }
    Ok(cpio.finish())
}

/// Adds to the base what belongs to one kernel.
///
/// # Errors
///
/// When its modules cannot be read.
pub(super) fn complete(base: &[u8], kernel: &KernelFiles, plan: &str) -> anyhow::Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    let mut list = String::new();
    for module in modules::read_wanted(&kernel.modules)? {
        let path = format!("/lib/modules/{}.ko", module.name);
        cpio.file(Path::new(&path), &module.content);
        list.push_str(&path);
        list.push('\n');
    }
    ensure!(
        !list.is_empty(),
        "{} holds no module that is wanted",
        kernel.modules.display()
    );
    cpio.file(Path::new("/modules"), list.as_bytes());
    cpio.file(Path::new("/plan"), plan.as_bytes());
    Ok([base, &cpio.finish()].concat())
}

fn add_file(cpio: &mut Cpio, path: &Path) -> anyhow::Result<()> {
    add_as(cpio, path, path)
}

fn add_as(cpio: &mut Cpio, place: &Path, path: &Path) -> anyhow::Result<()> {
    let content =
        fs::read(path).with_context(|| format!("{} could not be read", path.display()))?;
    cpio.file(place, &content);
    Ok(())
}

/// The shared libraries of programs, the dynamic linker among them.
fn libraries(programs: &BTreeSet<PathBuf>) -> anyhow::Result<BTreeSet<PathBuf>> {
    let answer = capture(Command::new("ldd").args(programs))?;
    Ok(parse_ldd(&answer))
}

fn parse_ldd(answer: &str) -> BTreeSet<PathBuf> {
    let path = |line: &str| {
        let line = line.trim();
        let found = line.split_once(" => ").map_or(line, |(_, found)| found);
        let path = found.split_once(" (0x").map(|(path, _)| path)?;
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    answer.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_ldd_found() {
        let answer = "\
/usr/bin/ip:
\tlinux-vdso.so.1 (0x00007ffd)
\tlibbpf.so.1 => /lib/x86_64-linux-gnu/libbpf.so.1 (0x00007fcd)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f)
/usr/bin/static:
\tnot a dynamic executable
";
        let expected = [
            "/lib/x86_64-linux-gnu/libbpf.so.1",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(
            parse_ldd(answer),
            expected.iter().map(PathBuf::from).collect()
        );
    }
}
