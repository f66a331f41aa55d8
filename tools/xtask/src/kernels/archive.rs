//! Kernels from the Debian archive that this machine is configured to use.
//!
//! Suites that are not configured are looked at through apt directories of our own, so that the system's apt never sees
//! them. Packages are unpacked, never installed.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use super::table::Kernel;
use crate::setup::Scratch;
use crate::workspace::run;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where kernels come from and where they are kept.
#[derive(Debug)]
pub(super) struct Archive {
    dir: PathBuf,
    main: String,
    security: String,
}

/// An unpacked kernel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct KernelFiles {
    /// As in the names of its packages.
    pub(super) version: String,
    pub(super) vmlinuz: PathBuf,
    /// Where its modules are.
    pub(super) modules: PathBuf,
}

impl Archive {
    /// Asks apt where Debian's archive is.
    ///
    /// # Errors
    ///
    /// When apt has no source for it.
    pub(super) fn new(dir: &Path) -> anyhow::Result<Self> {
        let targets = capture(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(ORIGIN)|$(LABEL)|$(REPO_URI)",
            "Created-By: Packages",
        ]))?;
        let uri = |label: &str| {
            let prefix = format!("Debian|{label}|");
            targets
                .lines()
                .find_map(|line| line.strip_prefix(&prefix))
                .map(str::to_owned)
                .with_context(|| {
                    format!("apt has no lists of {label}: configure it and run `apt-get update`")
                })
        };
        Ok(Self {
            dir: dir.to_owned(),
            main: uri("Debian")?,
            security: uri("Debian-Security")?,
        })
    }

    /// Makes the newest version of a kernel be there.
    ///
    /// # Errors
    ///
    /// When the archive has none, or cannot be reached.
    pub(super) fn fetch(&self, kernel: &Kernel) -> anyhow::Result<KernelFiles> {
        let lists = self.lists(kernel)?;
        let names = capture(lists.apt("apt-cache").args(["pkgnames", "linux-"]))?;
        let Some((package, version)) = newest(&names, kernel.version) else {
            bail!(
                "{} serves no {}* for cloud machines (any more): change the table of kernels",
                kernel.suite,
                kernel.version
            );
        };
        let place = self.dir.join(&version);
        if !place.is_dir() {
            println!("kernels: fetching {version}");
            let mut packages = vec![package];
            // Where the kernel is in `linux-binary`, its modules are in a package of their own.
            let modules = format!("linux-modules-{version}");
            if names.lines().any(|name| name == modules) {
                packages.push(modules);
            }
            lists.unpack(&packages, &place)?;
        }
        files(&place, version)
    }

    fn lists(&self, kernel: &Kernel) -> anyhow::Result<Lists> {
        let lists = Lists {
            // One for each kernel: apt locks its directories.
            dir: self.dir.join("apt").join(kernel.name),
        };
        for dir in ["etc", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(lists.dir.join(dir))?;
        }
        let uri = if kernel.suite.ends_with("-security") {
            &self.security
        } else {
            &self.main
        };
        let source = format!(
            "Types: deb\nURIs: {uri}\nSuites: {}\nComponents: main\nSigned-By: {KEYRING}\n",
            kernel.suite
        );
        fs::write(lists.dir.join("etc/kernels.sources"), source)?;
        run(lists.apt("apt-get").args(["-qq", "update"])).with_context(|| {
            format!(
                "the lists of {} could not be fetched: is the mirror reachable?",
                kernel.suite
            )
        })?;
        Ok(lists)
    }
}

/// apt directories of our own.
struct Lists {
    dir: PathBuf,
}

impl Lists {
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let option = |name: &str, dir: &str| {
            let mut option = OsString::from(name);
            option.push(self.dir.join(dir));
            option
        };
        command.args(["-o", "Dir::Etc::sourcelist=/dev/null"]).args(
            [
                option("Dir::Etc::sourceparts=", "etc"),
                option("Dir::State::lists=", "lists"),
                option("Dir::Cache=", "cache"),
            ]
            .into_iter()
            .flat_map(|option| [OsString::from("-o"), option]),
        );
        command
    }

    fn unpack(&self, packages: &[String], place: &Path) -> anyhow::Result<()> {
        let scratch = Scratch::create(place.with_extension(format!("{}", std::process::id())))?;
        run(self
            .apt("apt-get")
            // Without a sandbox: its user cannot write here.
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download"])
            .args(packages)
            .current_dir(scratch.path()))?;
        let root = scratch.path().join("root");
        for file in fs::read_dir(scratch.path())? {
            let file = file?.path();
            if file.extension().is_some_and(|extension| extension == "deb") {
                run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&root))?;
            }
        }
        fs::rename(&root, place)
            .with_context(|| format!("{} could not be put in place", place.display()))
    }
}

/// The newest package whose version begins so, and that version.
///
/// From 6.19 on, `linux-image` is empty and refers to `linux-binary`.
fn newest(names: &str, prefix: &str) -> Option<(String, String)> {
    let version = |name: &str| {
        let version = name
            .strip_prefix("linux-binary-")
            .or_else(|| name.strip_prefix("linux-image-"))?;
        (version.starts_with(prefix) && version.ends_with("-cloud-amd64"))
            .then(|| version.to_owned())
    };
    let found = names
        .lines()
        .filter_map(|name| Some((name.to_owned(), version(name)?)));
    // `linux-binary` comes before `linux-image`, and the last of equal ones is the greatest.
    found.max_by_key(|(name, version)| (numbers(version), name.starts_with("linux-binary-")))
}

/// `6.12.117+deb12` is newer than `6.12.99+deb12`.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|char: char| !char.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

fn files(place: &Path, version: String) -> anyhow::Result<KernelFiles> {
    let first = |candidates: [PathBuf; 2]| {
        let shown = candidates[0].clone();
        candidates
            .into_iter()
            .find(|path| path.exists())
            .with_context(|| format!("the package holds no {}", shown.display()))
    };
    let usr = place.join("usr/lib/modules").join(&version);
    Ok(KernelFiles {
        vmlinuz: first([
            place.join(format!("boot/vmlinuz-{version}")),
            usr.join("vmlinuz"),
        ])?,
        modules: first([
            place.join("lib/modules").join(&version).join("kernel"),
            usr.join("kernel"),
        ])?,
        version,
    })
}

/// Runs a command for its output.
pub(super) fn capture(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_owned();
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("{} could not be started", program.display()))?;
    ensure!(
        output.status.success(),
        "{} failed ({})",
        program.display(),
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_line_is_found() {
        let names = "\
linux-image-6.12.99+deb12-cloud-amd64
linux-image-6.12.117+deb12-cloud-amd64
linux-image-6.12.117+deb12-cloud-amd64-dbg
linux-image-6.12.118+deb12-amd64
linux-image-6.1.0-9-cloud-amd64
linux-image-6.1.0-56-cloud-amd64
linux-image-7.3.4+deb13-cloud-amd64
linux-binary-7.3.4+deb13-cloud-amd64
linux-image-6.12.100+deb12-cloud-amd64-unsigned
";
        let cases = [
            ("6.12.", Some("linux-image-6.12.117+deb12-cloud-amd64")),
            ("6.1.", Some("linux-image-6.1.0-56-cloud-amd64")),
            ("7.3.", Some("linux-binary-7.3.4+deb13-cloud-amd64")),
            ("6.12.100+", None),
            ("5.10.", None),
        ];
        for (prefix, package) in cases {
            let found = newest(names, prefix).map(|(package, _)| package);
            assert_eq!(found.as_deref(), package, "{prefix}");
        }
    }
}
