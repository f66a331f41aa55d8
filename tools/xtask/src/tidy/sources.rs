//! Rules about source files: their size, their licence header, and what must not be left in them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// A file longer than this is reported.
const WARN_LINES: usize = 500;

/// A file longer than this fails: it has more than one job.
const MAX_LINES: usize = 800;

/// The licence of what is loaded into the kernel.
const BPF_LICENCE: &str = "SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause";

/// What must not be left behind, and why. Spelled in halves, so that this file does not find itself.
const LEFTOVERS: [(&str, &str); 4] = [
    (concat!("todo", "!("), "finish it"),
    (concat!("unimplemented", "!("), "finish it"),
    (concat!("dbg", "!("), "remove it"),
    (
        concat!("#[ig", "nore"),
        "a test that does not run proves nothing",
    ),
];

/// What the inspection found.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) breaches: Vec<String>,
    pub(super) warnings: Vec<String>,
}

/// Reads every Rust file of the tree.
pub(super) fn inspect(root: &Path, files: &[PathBuf]) -> anyhow::Result<Report> {
    let mut report = Report::default();
    for file in files
        .iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "rs"))
    {
        let text = fs::read_to_string(root.join(file))
            .with_context(|| format!("{} could not be read", file.display()))?;
        inspect_file(file, &text, &mut report);
    }
    Ok(report)
}

fn inspect_file(file: &Path, text: &str, report: &mut Report) {
    let shown = file.display();
    if file.file_name().is_some_and(|name| name == "mod.rs") {
        report.breaches.push(format!(
            "{shown}: a module `foo` is `foo.rs`, with its children in `foo/`"
        ));
    }
    if file.starts_with("accelerator/ebpf")
        && !text.lines().take(3).any(|line| line.contains(BPF_LICENCE))
    {
        report
            .breaches
            .push(format!("{shown}: add the header `// {BPF_LICENCE}`"));
    }
    for (leftover, remedy) in LEFTOVERS {
        if let Some(index) = text.lines().position(|line| line.contains(leftover)) {
            report
                .breaches
                .push(format!("{shown}:{}: {leftover}…: {remedy}", index + 1));
        }
    }
    let lines = if is_test(file) || is_generated(file) {
        0
    } else {
        lines_of_code(text)
    };
    if lines > MAX_LINES {
        report.breaches.push(format!(
            "{shown} has {lines} lines without its tests, over {MAX_LINES}: split it by jobs"
        ));
    } else if lines > WARN_LINES {
        report.warnings.push(format!(
            "{shown} has {lines} lines without its tests, over {WARN_LINES}"
        ));
    }
}

fn is_test(file: &Path) -> bool {
    file.file_stem().is_some_and(|stem| stem == "tests")
        || file.components().any(|part| part.as_os_str() == "tests")
}

/// A test holds it to what it is generated from.
fn is_generated(file: &Path) -> bool {
    file.parent()
        .and_then(Path::file_name)
        .is_some_and(|folder| folder == "generated")
}

/// Lines before the test module, which by the house style is the last thing in a file.
fn lines_of_code(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let is_test_module = |pair: &[&str]| {
        pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{')
    };
    lines
        .windows(2)
        .position(is_test_module)
        .unwrap_or(lines.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaches_are_found_and_clean_files_pass() {
        struct Case {
            name: &'static str,
            file: &'static str,
            text: String,
            breach: Option<&'static str>,
        }
        let long = "line\n".repeat(MAX_LINES + 1);
        let cases = [
            Case {
                name: "clean",
                file: "a/src/lib.rs",
                text: "//! Text.\n".into(),
                breach: None,
            },
            Case {
                name: "mod.rs",
                file: "a/src/b/mod.rs",
                text: String::new(),
                breach: Some("foo.rs"),
            },
            Case {
                name: "long",
                file: "a/src/lib.rs",
                text: long.clone(),
                breach: Some("split it"),
            },
            Case {
                name: "long test file",
                file: "a/tests/b.rs",
                text: long.clone(),
                breach: None,
            },
            Case {
                name: "long test module",
                file: "a/src/lib.rs",
                text: format!("code\n#[cfg(test)]\nmod tests {{\n{long}"),
                breach: None,
            },
            Case {
                name: "a test module in its own file does not hide what follows",
                file: "a/src/lib.rs",
                text: format!("#[cfg(test)]\nmod tests;\n{long}"),
                breach: Some("split it"),
            },
            Case {
                name: "leftover",
                file: "a/src/lib.rs",
                text: format!("fn f() {{ {}) }}\n", LEFTOVERS[0].0),
                breach: Some("lib.rs:1"),
            },
            Case {
                name: "no licence",
                file: "accelerator/ebpf/src/main.rs",
                text: "//! Text.\n".into(),
                breach: Some("header"),
            },
        ];
        for Case {
            name,
            file,
            text,
            breach,
        } in cases
        {
            let mut report = Report::default();
            inspect_file(Path::new(file), &text, &mut report);
            let found = report.breaches.join("\n");
            match breach {
                Some(part) => assert!(found.contains(part), "{name}: {found:?}"),
                None => assert!(found.is_empty(), "{name}: {found:?}"),
            }
        }
    }
}
