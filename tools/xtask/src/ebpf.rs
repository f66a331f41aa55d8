//! `cargo xtask ebpf`: builds the BPF programs and keeps the committed object current.
//!
//! The object is the same for the same sources and toolchain, whatever the machine and the folder: no path of either is
//! in it, and nothing but `accelerator/ebpf`, `accelerator/abi` and the flags below goes into it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};

use crate::setup::{DebianPackage, ensure_debian};
use crate::workspace::{Workspace, run as run_command};

const CRATE: &str = "accelerator/ebpf";
const ABI: &str = "accelerator/abi";
const OBJECT: &str = "accelerator/datapath/bpf/isthmus.bpf.o";
const SOURCES: &str = "accelerator/datapath/bpf/isthmus.bpf.o.sources";
/// What the object is made from; tests of the shared crate are not.
const INPUTS: [&str; 5] = [
    "accelerator/abi/Cargo.toml",
    "accelerator/abi/src",
    "accelerator/ebpf/Cargo.lock",
    "accelerator/ebpf/Cargo.toml",
    "accelerator/ebpf/src",
];

const TARGET: &str = "bpfel-unknown-none";
const BPF_LINKER: &str = "0.13.0";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
/// Debian's compiler: the only one with a precompiled core for BPF, so that no nightly and no source is needed.
const RUSTC: &str = "/usr/bin/rustc";
/// BPF instruction set 2: newer ones make atomics that Linux before 5.12 refuses.
const FLAGS: [&str; 4] = [
    "-Clinker=bpf-linker",
    "-Clink-arg=--btf",
    "-Cdebuginfo=2",
    "-Ctarget-cpu=v2",
];

const PACKAGES: [DebianPackage; 5] = [
    DebianPackage {
        program: RUSTC,
        package: "rustc-web",
        why: "the compiler that has a core library for BPF",
    },
    DebianPackage {
        // The library's file name holds a hash: dpkg's own record proves it as well.
        program: "/var/lib/dpkg/info/libstd-rust-web-dev-bpf.list",
        package: "libstd-rust-web-dev-bpf",
        why: "that core library",
    },
    DebianPackage {
        program: "/usr/lib/llvm-22/bin/llvm-config",
        package: "llvm-22-dev",
        why: "bpf-linker is built against LLVM",
    },
    DebianPackage {
        program: "/usr/lib/llvm-22/bin/clang",
        package: "clang-22",
        why: "links bpf-linker with LLVM",
    },
    DebianPackage {
        program: "/usr/lib/llvm-22/bin/ld.lld",
        package: "lld-22",
        why: "links bpf-linker with LLVM",
    },
];

/// Builds the object and writes it with the hash of its sources; with `check`, compares and writes nothing.
pub(crate) fn run(root: &Path, check: bool) -> anyhow::Result<()> {
    let tools = Workspace::load()?.tools();
    install(&tools)?;
    let built = build(root, &tools)?;
    let sources = render_sources(root, &built)?;
    if !check {
        fs::create_dir_all(
            root.join(OBJECT)
                .parent()
                .context("the object has a folder")?,
        )?;
        fs::write(root.join(OBJECT), &built).with_context(|| format!("writing {OBJECT}"))?;
        fs::write(root.join(SOURCES), sources).with_context(|| format!("writing {SOURCES}"))?;
        println!("ebpf: {OBJECT}, {} bytes", built.len());
        return Ok(());
    }

    let committed = fs::read(root.join(OBJECT)).with_context(|| format!("reading {OBJECT}"))?;
    let recorded = fs::read_to_string(root.join(SOURCES)).unwrap_or_default();
    if built == committed && sources == recorded {
        println!("ebpf: {OBJECT} is what its sources make");
        return Ok(());
    }
    let toolchain = |text: &str| line(text, "toolchain").unwrap_or_default().to_owned();
    if toolchain(&sources) != toolchain(&recorded) {
        bail!(
            "{OBJECT} was built with {}, this machine has {}: commit what `cargo xtask ebpf` makes here",
            toolchain(&recorded),
            toolchain(&sources)
        );
    }
    bail!("{OBJECT} is not what its sources make: run `cargo xtask ebpf` and commit the result")
}

/// Fails when the committed object was not built from the sources as they are. Needs no toolchain.
pub(crate) fn sources_are_current(root: &Path) -> anyhow::Result<()> {
    let recorded = fs::read_to_string(root.join(SOURCES))
        .with_context(|| format!("{SOURCES} cannot be read: run `cargo xtask ebpf`"))?;
    let object = fs::read(root.join(OBJECT))
        .with_context(|| format!("{OBJECT} cannot be read: run `cargo xtask ebpf`"))?;
    ensure!(
        line(&recorded, "sources") == Some(&hash_inputs(root)?),
        "{OBJECT} is older than its sources in {CRATE} and accelerator/abi: run `cargo xtask ebpf` and commit the result"
    );
    ensure!(
        line(&recorded, "object") == Some(&hex(&Sha256::digest(object))),
        "{OBJECT} is not the file that {SOURCES} describes: run `cargo xtask ebpf` and commit the result"
    );
    Ok(())
}

fn install(tools: &Path) -> anyhow::Result<()> {
    ensure_debian(&PACKAGES)?;
    let linker = tools.join("bin/bpf-linker");
    let version = Command::new(&linker).arg("--version").output();
    if version.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .ends_with(BPF_LINKER)
    }) {
        return Ok(());
    }

    println!(
        "setup: building bpf-linker {BPF_LINKER} (turns LLVM bitcode into a BPF object; two minutes)"
    );
    run_command(
        Command::new("cargo")
            .args(["install", "--quiet", "--locked", "bpf-linker"])
            .args(["--version", BPF_LINKER, "--no-default-features"])
            .args(["--features", "llvm-22", "--force", "--root"])
            .arg(tools)
            .env("LLVM_PREFIX", LLVM_PREFIX)
            .env("CARGO_TARGET_DIR", tools.join("bpf-linker-build")),
    )
    .context("bpf-linker could not be built: is a crate registry configured and reachable?")?;
    // Half a gigabyte that nobody needs again.
    fs::remove_dir_all(tools.join("bpf-linker-build")).context("removing the build of bpf-linker")
}

fn build(root: &Path, tools: &Path) -> anyhow::Result<Vec<u8>> {
    let target = tools.with_file_name("ebpf");
    fs::create_dir_all(&target).with_context(|| format!("making {}", target.display()))?;
    // The compiler names files by where they really are: through a link, no prefix below would match.
    let target = target
        .canonicalize()
        .with_context(|| format!("finding {}", target.display()))?;
    let stage = target.join("sources");
    stage_sources(root, &stage)?;
    let path = env::join_paths(
        [tools.join("bin")]
            .into_iter()
            .chain(env::split_paths(&env::var_os("PATH").unwrap_or_default())),
    )?;
    run_command(
        Command::new("cargo")
            .args([
                "build",
                "--quiet",
                "--locked",
                "--release",
                "--target",
                TARGET,
            ])
            .current_dir(&stage)
            .env("CARGO_ENCODED_RUSTFLAGS", flags(&stage)?)
            .env("CARGO_TARGET_DIR", &target)
            // Only kprobes look at it, but the default is this machine's.
            .env("AYA_BPF_TARGET_ARCH", "x86_64")
            .env("LLVM_PREFIX", LLVM_PREFIX)
            .env("PATH", path)
            .env("RUSTC", RUSTC)
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTFLAGS"),
    )
    .context("the BPF programs do not build")?;

    let linked = target.join(TARGET).join("release/isthmus");
    let stripped = linked.with_extension("stripped.o");
    // Type and line information stays, in .BTF and .BTF.ext; DWARF is five times the rest.
    run_command(
        Command::new(Path::new(LLVM_PREFIX).join("bin/llvm-objcopy"))
            .arg("--strip-debug")
            .args([&linked, &stripped]),
    )?;
    fs::read(&stripped).with_context(|| format!("reading {}", stripped.display()))
}

/// Copies the sources into one workspace. cargo puts the path of a package that is outside of its workspace into the
/// names of symbols, so that the object would depend on the folder of the checkout.
fn stage_sources(root: &Path, stage: &Path) -> anyhow::Result<()> {
    let shared = stage.join("abi");
    for (from, to) in [
        (root.join(CRATE), stage),
        (root.join(ABI), shared.as_path()),
    ] {
        if to.exists() {
            fs::remove_dir_all(to).with_context(|| format!("removing {}", to.display()))?;
        }
        copy_tree(&from.join("src"), &to.join("src"))?;
        for name in ["Cargo.lock", "Cargo.toml"] {
            if from.join(name).exists() {
                fs::copy(from.join(name), to.join(name))?;
            }
        }
    }

    // As a member it would need what its tests need, which the lock file of the programs does not have.
    let manifest = fs::read_to_string(shared.join("Cargo.toml"))?;
    let without_tests = manifest
        .split("[dev-dependencies]")
        .next()
        .unwrap_or_default();
    fs::write(shared.join("Cargo.toml"), without_tests)?;

    let workspace = fs::read_to_string(root.join("Cargo.toml"))?;
    let inherited = workspace
        .split_once("[workspace.package]")
        .and_then(|(_, rest)| rest.split_once("[profile."))
        .context(
            "Cargo.toml has [workspace.package] and, after all that is inherited, [profile.…]",
        )?
        .0;
    let manifest = fs::read_to_string(stage.join("Cargo.toml"))?
        .replace("[workspace]\n", "[workspace]\nmembers = [\"abi\"]\n")
        .replace("\"../abi\"", "\"abi\"");
    fs::write(
        stage.join("Cargo.toml"),
        format!("{manifest}\n[workspace.package]{inherited}"),
    )
    .context("writing the manifest of the staged sources")
}

fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)
                .with_context(|| format!("copying {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// The compiler's flags, with every folder of this machine replaced by a name.
fn flags(stage: &Path) -> anyhow::Result<String> {
    let mut flags: Vec<String> = FLAGS.map(str::to_owned).into();
    flags.push(format!("--remap-path-prefix={}=/isthmus", stage.display()));
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
        .context("neither CARGO_HOME nor a home directory is set")?;
    // One folder for each registry; which one it is says nothing about the sources.
    let registries = home.join("registry/src");
    for registry in fs::read_dir(&registries).into_iter().flatten() {
        flags.push(format!(
            "--remap-path-prefix={}=/cargo",
            registry?.path().display()
        ));
    }
    Ok(flags.join("\u{1f}"))
}

fn render_sources(root: &Path, object: &[u8]) -> anyhow::Result<String> {
    let rustc = Command::new(RUSTC)
        .arg("--version")
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("{RUSTC} could not be started"))?;
    let rustc = String::from_utf8_lossy(&rustc.stdout).trim().to_owned();
    Ok(format!(
        "# Written by `cargo xtask ebpf`: what the object beside it was made from.\n\
         sources {}\nobject {}\ntoolchain {rustc}, bpf-linker {BPF_LINKER}\n",
        hash_inputs(root)?,
        hex(&Sha256::digest(object)),
    ))
}

/// SHA-256 over names, lengths and contents, in the order of names, and over the flags.
fn hash_inputs(root: &Path) -> anyhow::Result<String> {
    let mut files = Vec::new();
    for input in INPUTS {
        collect(&root.join(input), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for flag in FLAGS {
        hash.update(flag);
        hash.update([0]);
    }
    for file in files {
        let content = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let name = file
            .strip_prefix(root)
            .context("inputs are inside the checkout")?;
        hash.update(name.to_string_lossy().as_bytes());
        hash.update([0]);
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(content);
    }
    Ok(hex(&hash.finalize()))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    let entries = fs::read_dir(path).with_context(|| format!("reading {}", path.display()))?;
    for entry in entries {
        let path = entry?.path();
        let is_test = path.file_stem().is_some_and(|stem| stem == "tests");
        if !is_test {
            collect(&path, files)?;
        }
    }
    Ok(())
}

fn line<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_their_whole_first_word() {
        let text = "# comment\nsources ab\nobject cd\n";
        assert_eq!(line(text, "sources"), Some("ab"));
        assert_eq!(line(text, "object"), Some("cd"));
        assert_eq!(line(text, "obj"), None);
        assert_eq!(line(text, "toolchain"), None);
    }

    #[test]
    fn hashes_are_lower_case_hexadecimal() {
        assert_eq!(hex(&[0, 0xab, 9]), "00ab09");
    }
}
