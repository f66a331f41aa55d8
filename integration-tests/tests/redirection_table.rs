//! The contract of redirection, row by row: what `istio-iptables` does, the accelerator does.
//!
//! Every row runs in the same namespaces with the accelerator alone, with Istio's own rules alone (the
//! oracle, made by Istio's own code), and with both. Who answers is written in the row; everything that
//! the client and the server saw must be the same three times.
//!
//! Rows (istio/istio, `tools/istio-iptables/pkg/capture/run.go`, in its order):
//!
//! | rows | what |
//! |---|---|
//! | I1-I8 | what arrives: interfaces, the tunnel, excluded and included ports, datagrams |
//! | O1-O13 | what leaves: excluded ports, the sidecar's own dials, own addresses, owner groups, ranges, ports |
//! | D1-D3 | DNS |
//! | T1 | TPROXY |
//! | X1-X6 | strays, original destinations, what the client sees, address families, changes of rules, istio-validation |
//!
//! Needs root, BPF, iptables and iproute2; fails with the reason where something is missing.

#[path = "redirection_table/cases.rs"]
mod cases;
#[path = "redirection_table/changes.rs"]
mod changes;
#[path = "redirection_table/conntrack.rs"]
mod conntrack;
#[path = "redirection_table/dial.rs"]
mod dial;
#[path = "kernel_datapath/fixture.rs"]
#[expect(dead_code, reason = "other tests use the rest of it")]
mod fixture;
#[path = "redirection_table/inbound.rs"]
mod inbound;
#[path = "redirection_table/modes.rs"]
mod modes;
#[path = "redirection_table/names.rs"]
mod names;
#[path = "redirection_table/net.rs"]
mod net;
#[path = "redirection_table/options.rs"]
mod options;
#[path = "redirection_table/outbound.rs"]
mod outbound;
#[path = "redirection_table/row.rs"]
mod row;
#[path = "redirection_table/servers.rs"]
mod servers;
#[path = "redirection_table/socket.rs"]
mod socket;
#[path = "redirection_table/virtual_machines.rs"]
mod virtual_machines;
#[path = "redirection_table/way_back.rs"]
mod way_back;

use std::collections::BTreeMap;

use dial::{Dial, Seen};
use modes::{Mode, Redirection};
use net::{Family, Net};
use row::Row;
use servers::{Role, Servers, Transparency};

#[test]
fn what_arrives_is_captured_as_by_istios_rules() {
    check(&inbound::rows());
}

#[test]
fn what_leaves_is_captured_as_by_istios_rules() {
    check(&outbound::rows());
}

#[test]
fn dns_is_captured_as_by_istios_rules() {
    check(&names::rows());
}

#[test]
fn sources_are_kept_in_tproxy_mode_as_by_istios_rules() {
    check_in(&Net::new(), Transparency::On, &inbound::tproxy_rows());
}

/// Runs every row in every mode, and reports all disagreements at once.
fn check(rows: &[Row]) {
    check_in(&Net::new(), Transparency::Off, rows);
}

fn check_in(net: &Net, transparency: Transparency, rows: &[Row]) {
    let servers = Servers::start(net, transparency);
    let mut wrong = Vec::new();
    let mut oracle = BTreeMap::new();
    // The accelerator first, in namespaces that never had a table of iptables.
    let alone = observe(net, rows, Mode::AcceleratorAlone, &mut wrong);
    for mode in [Mode::IptablesAlone, Mode::Both] {
        let seen = observe(net, rows, mode, &mut wrong);
        if mode == Mode::IptablesAlone {
            oracle = seen;
        } else {
            compare(&oracle, &seen, mode, &mut wrong);
        }
    }
    compare(&oracle, &alone, Mode::AcceleratorAlone, &mut wrong);
    drop(servers);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

type Observations = BTreeMap<String, Seen>;

fn observe(net: &Net, rows: &[Row], mode: Mode, wrong: &mut Vec<String>) -> Observations {
    let mut redirection = Redirection::new(net, mode);
    let mut observations = Observations::new();
    for row in rows {
        let left_alone = redirection.apply(&row.settings);
        if mode == Mode::AcceleratorAlone
            && let Some(reason) = left_alone
        {
            wrong.push(format!("{}: the accelerator leaves it: {reason}", row.name));
            continue;
        }
        let dials = row.dials.iter().map(|dial| dial.in_mode(mode));
        for (number, dial) in dials.enumerate() {
            for family in dial.families {
                let name = format!("{} [dial {number}, {family:?}]", row.name);
                let seen = dial_as_itself(net, &dial, *family);
                if let Err(text) = expect(&dial, *family, &seen) {
                    wrong.push(format!("{name} {mode:?}: {text}"));
                }
                observations.insert(name, seen);
            }
        }
    }
    observations
}

/// Dials, again if NAT had to give the connection another port: an earlier connection of the same port is
/// remembered for a minute.
fn dial_as_itself(net: &Net, dialled: &Dial, family: Family) -> Seen {
    let mut seen = dial::dial(net, dialled, family);
    for _ in 0..2 {
        if matches!(
            &seen,
            Seen::Answered {
                has_own_port: false,
                ..
            }
        ) {
            seen = dial::dial(net, dialled, family);
        }
    }
    seen
}

/// Checks what the row itself says.
fn expect(dial: &Dial, family: Family, seen: &Seen) -> Result<(), String> {
    let (place, role) = dial.answers;
    let target = dial.target(family);
    let Seen::Answered {
        peer,
        by,
        original,
        has_own_port,
        ..
    } = seen
    else {
        return Err(format!("{target}: {seen:?}"));
    };
    let name = servers::name(place, role);
    // X3: the client sees whom it dialled.
    let mut is_right = *by == name && *peer == target && *has_own_port;
    if matches!(role, Role::Outbound | Role::Inbound) {
        // X2
        is_right &= *original == target.to_string();
    }
    if is_right {
        Ok(())
    } else {
        Err(format!("{target} should be answered by {name}: {seen:?}"))
    }
}

fn compare(oracle: &Observations, seen: &Observations, mode: Mode, wrong: &mut Vec<String>) {
    for (name, seen) in seen {
        let theirs = &oracle[name];
        if seen != theirs {
            wrong.push(format!(
                "{name} {mode:?}: {seen:?}, by Istio's rules {theirs:?}"
            ));
        }
    }
}
