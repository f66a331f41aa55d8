//! Who may import whom: the table of ARCHITECTURE.md, held against `cargo metadata`.
//!
//! An import points down, never up and never sideways in a row; `xds-server/` and `accelerator/` never import each
//! other.

use serde_json::Value;

use crate::workspace::Workspace;

/// The rows, from the bottom to the top.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Row {
    Vocabulary,
    Pure,
    TouchesTheWorld,
    NobodyImports,
    Measures,
}

/// The half of the tree that a crate belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Side {
    Accelerator,
    ControlPlane,
    Shared,
}

const TABLE: &[(&str, Row, Side)] = &[
    ("isthmus-accel-abi", Row::Vocabulary, Side::Accelerator),
    ("isthmus-accel-core", Row::Pure, Side::Accelerator),
    (
        "isthmus-accel-datapath",
        Row::TouchesTheWorld,
        Side::Accelerator,
    ),
    ("isthmus-accelerator", Row::NobodyImports, Side::Accelerator),
    ("isthmus-api", Row::Vocabulary, Side::Shared),
    ("isthmus-bench", Row::Measures, Side::Shared),
    ("isthmus-fuzz", Row::Measures, Side::Shared),
    ("isthmus-heap", Row::Vocabulary, Side::Shared),
    ("isthmus-http2", Row::TouchesTheWorld, Side::ControlPlane),
    (
        "isthmus-integration-tests",
        Row::NobodyImports,
        Side::Shared,
    ),
    ("isthmus-kernel-guest", Row::NobodyImports, Side::Shared),
    ("isthmus-proto", Row::Vocabulary, Side::Shared),
    ("isthmus-xds", Row::NobodyImports, Side::ControlPlane),
    ("isthmus-xds-core", Row::Pure, Side::ControlPlane),
    ("xtask", Row::NobodyImports, Side::Shared),
];

/// Every edge between members that the table does not allow, and every member that it does not know.
pub(super) fn breaches(workspace: &Workspace) -> Vec<String> {
    let mut breaches = Vec::new();
    for package in workspace.packages() {
        let name = package["name"].as_str().unwrap_or_default();
        if place(name).is_none() {
            breaches.push(format!("{name} has no row in the import table of tools/xtask/src/tidy/imports.rs: give it one"));
            continue;
        }
        for imported in members(package) {
            if let Some(reason) = refuse(name, imported) {
                breaches.push(format!("{name} imports {imported}: {reason}"));
            }
        }
    }
    breaches
}

/// Names of the workspace's own crates that a package depends on, in any way.
fn members(package: &Value) -> impl Iterator<Item = &str> {
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    dependencies
        .filter(|dependency| dependency["path"].is_string())
        .filter_map(|dependency| dependency["name"].as_str())
}

/// Why the edge is not allowed, if it is not.
fn refuse(importer: &str, member: &str) -> Option<String> {
    let (from, from_side) = place(importer)?;
    let Some((to, to_side)) = place(member) else {
        return Some("it has no row in the import table".to_owned());
    };
    if from <= to {
        return Some(format!(
            "an import points down, and this one goes from {from:?} to {to:?}"
        ));
    }
    let is_across = from_side != to_side && from_side != Side::Shared && to_side != Side::Shared;
    is_across.then(|| "the control plane and the accelerator meet on the wire only".to_owned())
}

fn place(name: &str) -> Option<(Row, Side)> {
    TABLE
        .iter()
        .find(|(known, ..)| *known == name)
        .map(|&(_, row, side)| (row, side))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_point_down_and_stay_on_their_side() {
        struct Case {
            edge: (&'static str, &'static str),
            is_allowed: bool,
        }
        let cases = [
            Case {
                edge: ("isthmus-accel-datapath", "isthmus-accel-core"),
                is_allowed: true,
            },
            Case {
                edge: ("isthmus-accelerator", "isthmus-api"),
                is_allowed: true,
            },
            Case {
                edge: ("isthmus-integration-tests", "isthmus-accel-datapath"),
                is_allowed: true,
            },
            Case {
                edge: ("isthmus-bench", "isthmus-xds"),
                is_allowed: true,
            },
            Case {
                edge: ("isthmus-xds", "isthmus-bench"),
                is_allowed: false,
            },
            Case {
                edge: ("isthmus-accel-core", "isthmus-accel-datapath"),
                is_allowed: false,
            },
            Case {
                edge: ("isthmus-api", "isthmus-proto"),
                is_allowed: false,
            },
            Case {
                edge: ("isthmus-integration-tests", "isthmus-xds"),
                is_allowed: false,
            },
            Case {
                edge: ("isthmus-xds", "isthmus-accel-core"),
                is_allowed: false,
            },
            Case {
                edge: ("isthmus-xds", "isthmus-nowhere"),
                is_allowed: false,
            },
        ];
        for Case {
            edge: (importer, imported),
            is_allowed,
        } in cases
        {
            assert_eq!(
                refuse(importer, imported).is_none(),
                is_allowed,
                "{importer} -> {imported}"
            );
        }
    }
}
