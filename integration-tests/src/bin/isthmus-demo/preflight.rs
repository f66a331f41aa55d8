//! Whether this machine can show the data path, in the words of the accelerator's own probe.

use std::process::Command;

use anyhow::{Context, Result};
use isthmus_integration_tests::programs;
use serde::Deserialize;

/// What the probe needs before connections can be redirected at all.
const REDIRECT: &str = "redirect";

/// What was found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Preflight {
    /// What keeps the data path from being shown at all.
    pub(crate) obstacle: Option<String>,
    /// What keeps bytes from skipping TCP, while connections are redirected.
    pub(crate) caveat: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Probe {
    features: Vec<Feature>,
}

#[derive(Debug, Deserialize)]
struct Feature {
    detail: String,
    #[serde(rename = "feature")]
    name: String,
    is_present: bool,
    needed_by: String,
    remedy: Option<String>,
}

/// Looks at this machine.
///
/// # Errors
///
/// When the accelerator's program is not built.
pub(crate) fn look() -> Result<Preflight> {
    if !is_root()? {
        let obstacle = "network namespaces and BPF need root, and this is not root".to_owned();
        return Ok(Preflight {
            obstacle: Some(obstacle),
            caveat: None,
        });
    }
    // Its exit code says that something is missing; which, is in the answer.
    let output = Command::new(programs::own("isthmus-accelerator")?)
        .args(["probe", "--output", "json"])
        .output()
        .context("isthmus-accelerator could not be started")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let probe = serde_json::from_str(&text)
        .with_context(|| format!("isthmus-accelerator probe printed {text:?}"))?;
    Ok(judge(&probe))
}

fn judge(probe: &Probe) -> Preflight {
    let first = |is_redirect: bool| {
        let mut missing = probe.features.iter().filter(|feature| !feature.is_present);
        let feature = missing.find(|feature| (feature.needed_by == REDIRECT) == is_redirect)?;
        let remedy = feature
            .remedy
            .as_ref()
            .map(|remedy| format!("; {remedy}"))
            .unwrap_or_default();
        Some(format!(
            "{} is missing: {}{remedy}",
            feature.name, feature.detail
        ))
    };
    Preflight {
        obstacle: first(true),
        caveat: first(false),
    }
}

fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc is not mounted")?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(ids.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_missing_feature_of_each_kind_is_named() {
        let feature = |name: &str, needed_by: &str, is_present| Feature {
            detail: "not found".to_owned(),
            name: name.to_owned(),
            is_present,
            needed_by: needed_by.to_owned(),
            remedy: Some("mount it".to_owned()),
        };
        let complete = Probe {
            features: vec![
                feature("BTF", "redirect", true),
                feature("fields", "sockmap", true),
            ],
        };
        assert_eq!(judge(&complete), Preflight::default());

        let lacking = Probe {
            features: vec![
                feature("fields", "sockmap", false),
                feature("cgroup v2", "redirect", false),
            ],
        };
        let expected = Preflight {
            obstacle: Some("cgroup v2 is missing: not found; mount it".to_owned()),
            caveat: Some("fields is missing: not found; mount it".to_owned()),
        };
        assert_eq!(judge(&lacking), expected);
    }
}
