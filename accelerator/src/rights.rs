//! The rights without which no command can do anything, asked for first: the kernel would refuse some
//! later step with an error that names that step.

use std::fs;

use isthmus_accel_datapath::DatapathError;

/// What is needed, by its bit in `CapEff` of proc(5).
const NEEDED: [(u32, &str); 4] = [
    (12, "CAP_NET_ADMIN"),
    (21, "CAP_SYS_ADMIN"),
    (38, "CAP_PERFMON"),
    (39, "CAP_BPF"),
];

/// Checks the effective capabilities of this process.
///
/// # Errors
///
/// Returns [`DatapathError::Missing`] with the first one that it lacks. If procfs does not tell, the
/// kernel will.
pub fn require() -> Result<(), DatapathError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    missing(&status).map_or(Ok(()), |feature| {
        Err(DatapathError::Missing {
            feature,
            detail: "this process does not have it".to_owned(),
            remedy: "run it as root, or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN",
        })
    })
}

fn missing(status: &str) -> Option<&'static str> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    let lacking = NEEDED.into_iter().find(|(bit, _)| mask & (1 << bit) == 0);
    lacking.map(|(_, name)| name)
}

#[cfg(test)]
mod tests {

    #[test]
    fn names_what_is_missing() {
        struct Case {
            name: &'static str,
            status: &'static str,
            missing: Option<&'static str>,
        }
        let cases = [
            Case {
                name: "root",
                status: "Name:\tx\nCapEff:\t000001ffffffffff\n",
                missing: None,
            },
            Case {
                name: "nobody",
                status: "CapEff:\t0000000000000000\n",
                missing: Some("CAP_NET_ADMIN"),
            },
            Case {
                name: "no CAP_BPF",
                status: "CapEff:\t0000004000201000\n",
                missing: Some("CAP_BPF"),
            },
            Case {
                name: "just enough",
                status: "CapEff:\t000000c000201000\n",
                missing: None,
            },
            Case {
                name: "no procfs",
                status: "",
                missing: None,
            },
        ];
        for Case {
            name,
            status,
            missing,
        } in cases
        {
            assert_eq!(super::missing(status), missing, "{name}");
        }
    }
}
