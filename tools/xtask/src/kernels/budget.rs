//! The budget of the verifier, as a file: `program kernel instructions stack`, one row a line.
//!
//! The test `budget` of `kernel_datapath` holds programs against it, on this machine's kernel and in every guest. This
//! writes it anew, from what that test has printed in the guests.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

const FILE: &str = "accelerator/datapath/bpf/budget.txt";
const HEADER: &str = "\
# What the verifier may have to do for each program: instructions that it walks through, and bytes of stack of the
# program and its functions together. Written by `cargo xtask kernels --update-budget`: measured, and a quarter more.
# program kernel instructions stack
";

/// Program and kernel's line, to instructions and bytes of stack.
type Rows = BTreeMap<(String, String), (u64, u64)>;

/// Replaces the rows of the kernels that have run; the others stay.
///
/// # Errors
///
/// When a log holds no measurement, or the file cannot be written.
pub(super) fn update(root: &Path, logs: &[(&str, String)]) -> anyhow::Result<()> {
    let path = root.join(FILE);
    let mut rows = parse(&fs::read_to_string(&path).unwrap_or_default());
    for (version, log) in logs {
        let line = line(version);
        let measured = measured(log);
        ensure!(
            !measured.is_empty(),
            "the guest with {version} has measured nothing"
        );
        rows.retain(|(_, kernel), _| *kernel != line);
        for (program, instructions, stack) in measured {
            let limits = (
                roomy(instructions).next_multiple_of(100),
                roomy(stack).next_multiple_of(8),
            );
            rows.insert((program, line.clone()), limits);
        }
    }
    fs::write(&path, render(&rows))
        .with_context(|| format!("{} could not be written", path.display()))
}

/// `6.12.100` is of the line `6.12`.
fn line(version: &str) -> String {
    version.splitn(3, '.').take(2).collect::<Vec<_>>().join(".")
}

fn roomy(measured: u64) -> u64 {
    measured + measured.div_ceil(4)
}

fn measured(log: &str) -> Vec<(String, u64, u64)> {
    log.lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("verifier: ")?.split_whitespace();
            let program = words.next()?.to_owned();
            Some((
                program,
                words.next()?.parse().ok()?,
                words.next()?.parse().ok()?,
            ))
        })
        .collect()
}

fn parse(text: &str) -> Rows {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let key = (words.next()?.to_owned(), words.next()?.to_owned());
        let limits = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((key, limits))
    };
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(row)
        .collect()
}

fn render(rows: &Rows) -> String {
    rows.iter()
        .map(|((program, kernel), (instructions, stack))| {
            format!("{program} {kernel} {instructions} {stack}\n")
        })
        .fold(HEADER.to_owned(), |text, row| text + &row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_rows_are_replaced_and_the_others_stay() -> anyhow::Result<()> {
        let root = std::env::temp_dir().join(format!("isthmus-budget-{}", std::process::id()));
        let path = root.join(FILE);
        fs::create_dir_all(path.parent().context("it has one")?)?;
        fs::write(&path, "# old\na 6.1 5000 8\na 6.12 900 16\ngone 6.12 1 1\n")?;
        let log = "x\nverifier: a 1001 33\nverifier: b 80 0\ntest ok\n".to_owned();
        update(&root, &[("6.12.100", log)])?;
        let text = fs::read_to_string(&path)?;
        fs::remove_dir_all(&root)?;
        let rows: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(rows, ["a 6.1 5000 8", "a 6.12 1300 48", "b 6.12 100 0"]);
        Ok(())
    }

    #[test]
    fn a_guest_that_measured_nothing_is_an_error() {
        let error = update(Path::new("/nonexistent"), &[("6.1", String::new())]);
        assert!(error.is_err());
    }
}
