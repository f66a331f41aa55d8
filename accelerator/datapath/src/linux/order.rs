//! Who runs first where destinations are rewritten.
//!
//! A socket load balancer such as Cilium's turns a service address into a backend's at the same hooks. Whoever runs second
//! sees what the first has made of the destination, so the accelerator runs first, or not at all: a proxy that is told
//! a backend's address applies the wrong policy.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use super::{
    mounts::cgroup_root,
    sys::{self, AttachType},
};
use crate::DatapathError;

/// Where a program goes among those that a cgroup has at a hook.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    /// Before all others. From Linux 6.12 on.
    First,
    /// After all others.
    Last,
}

/// Hooks at which a destination may be rewritten.
const REWRITING: [AttachType; 4] = [
    AttachType::CgroupInet4Connect,
    AttachType::CgroupInet6Connect,
    AttachType::CgroupUdp4Sendmsg,
    AttachType::CgroupUdp6Sendmsg,
];

/// How programs of Cilium's socket load balancer are called: `cil_sock4_connect`, and without the prefix before 1.13.
/// The kernel keeps 15 characters of a name.
const LOAD_BALANCERS: [&str; 4] = ["cil_sock4_", "cil_sock6_", "sock4_", "sock6_"];

/// What this is called among the features that a probe lists.
pub(crate) const FEATURE: &str = "first place at connect";
/// What to do about a load balancer that is first.
pub(crate) const REMEDY: &str =
    "run Linux 6.12 or newer, or run Cilium without socket load balancing for pods";

/// The place for a program of ours that is about to be attached.
///
/// # Errors
///
/// Returns [`DatapathError::Missing`] if a socket load balancer would run before it.
pub(crate) fn place(cgroup: BorrowedFd<'_>, hook: AttachType) -> Result<Place, DatapathError> {
    if !REWRITING.contains(&hook) {
        return Ok(Place::Last);
    }
    choose(&attached(cgroup, hook)?).map_err(missing)
}

/// Says what the programs find at the hooks where they must be first.
///
/// # Errors
///
/// Returns [`DatapathError::Missing`] if a socket load balancer runs before them, or would.
pub(crate) fn outlook(cgroup: BorrowedFd<'_>) -> Result<String, DatapathError> {
    let mut found = "no socket load balancer is attached".to_owned();
    for hook in REWRITING {
        let attached = attached(cgroup, hook)?;
        if let Some(name) = attached.load_balancer() {
            found = format!("before {name}");
        }
        // What is attached after ours, is.
        choose(&attached.before_ours()).map_err(missing)?;
    }
    Ok(found)
}

/// As [`outlook`], of the root.
///
/// # Errors
///
/// As [`outlook`].
pub(crate) fn first_place() -> Result<String, DatapathError> {
    let root = cgroup_root()?;
    let cgroup = File::open(&root).map_err(|source| DatapathError::Kernel {
        action: format!("opening {}", root.display()),
        source,
    })?;
    outlook(cgroup.as_fd())
}

fn missing(detail: String) -> DatapathError {
    DatapathError::Missing {
        feature: FEATURE,
        detail,
        remedy: REMEDY,
    }
}

/// What a cgroup has at a hook.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Attached {
    /// Names of the programs, in the order in which they run.
    names: Vec<String>,
    ordering: Ordering,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ordering {
    /// A program can be put before others.
    ByRequest,
    /// Who comes first, runs first.
    ByAge,
}

impl Attached {
    fn before_ours(&self) -> Self {
        let is_other = |name: &&String| !name.starts_with("isthmus_");
        Self {
            names: self.names.iter().take_while(is_other).cloned().collect(),
            ordering: self.ordering,
        }
    }

    fn load_balancer(&self) -> Option<&str> {
        let is_one = |name: &&String| LOAD_BALANCERS.iter().any(|prefix| name.starts_with(prefix));
        self.names.iter().find(is_one).map(String::as_str)
    }
}

fn choose(attached: &Attached) -> Result<Place, String> {
    match (attached.ordering, attached.load_balancer()) {
        (Ordering::ByRequest, _) => Ok(Place::First),
        (Ordering::ByAge, None) => Ok(Place::Last),
        (Ordering::ByAge, Some(name)) => Err(format!(
            "{name} would rewrite destinations first, and this kernel puts no program before it"
        )),
    }
}

fn attached(cgroup: BorrowedFd<'_>, hook: AttachType) -> Result<Attached, DatapathError> {
    let failed = |source| DatapathError::Kernel {
        action: "asking which programs a cgroup has".to_owned(),
        source,
    };
    let found = sys::cgroup_programs(cgroup, hook).map_err(failed)?;
    let mut names = Vec::new();
    for id in found.ids {
        match sys::program_name(id) {
            Ok(name) => names.push(name),
            // Gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let ordering = if found.revision > 0 {
        Ordering::ByRequest
    } else {
        Ordering::ByAge
    };
    Ok(Attached { names, ordering })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_balancer_never_runs_first() {
        use Ordering::{ByAge, ByRequest};
        let cases: [(&[&str], Ordering, Option<Place>); 6] = [
            (&[], ByAge, Some(Place::Last)),
            (&["audit"], ByAge, Some(Place::Last)),
            (&["audit", "cil_sock4_conne"], ByAge, None),
            (&["sock6_connect"], ByAge, None),
            (&["cil_sock4_conne"], ByRequest, Some(Place::First)),
            (&[], ByRequest, Some(Place::First)),
        ];
        for (names, ordering, expected) in cases {
            let attached = Attached {
                names: names.iter().map(|name| (*name).to_owned()).collect(),
                ordering,
            };
            assert_eq!(choose(&attached).ok(), expected, "{attached:?}");
        }
    }

    #[test]
    fn one_that_came_after_us_does_not_matter() {
        let attached = |names: [&str; 2]| Attached {
            names: names.map(str::to_owned).into(),
            ordering: Ordering::ByAge,
        };
        let after = attached(["isthmus_connect", "cil_sock4_conne"]);
        assert!(choose(&after.before_ours()).is_ok());
        assert!(
            choose(&after).is_err(),
            "another program of ours would be last"
        );
        let before = attached(["cil_sock4_conne", "isthmus_connect"]);
        assert!(choose(&before.before_ours()).is_err());
    }
}
