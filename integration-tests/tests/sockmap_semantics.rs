//! What a socket promises, with the accelerator and without: one test for each behaviour that sockmaps are
//! known to change, on every leg of a connection.
//!
//! Needs root, BPF and iproute2; fails with the reason where something is missing.

#[path = "sockmap_semantics/calls.rs"]
mod calls;
#[path = "sockmap_semantics/closing.rs"]
mod closing;
#[path = "sockmap_semantics/exclusion.rs"]
mod exclusion;
#[path = "kernel_datapath/fixture.rs"]
#[allow(dead_code, reason = "shared with the suites of the other programs")]
mod fixture;
#[path = "sockmap_semantics/legs.rs"]
mod legs;
#[path = "sockmap_semantics/reading.rs"]
mod reading;
#[path = "sockmap_semantics/writing.rs"]
mod writing;

use isthmus_accel_abi::PodFlags;
use legs::{Leg, Legs, Pair, Path};

/// What the sockmap changes, if its use is opted in to. Without, only proxies meet it.
#[derive(Clone, Copy, Debug)]
enum Sockmap {
    /// Nothing: all of it is as by TCP.
    AsTcp,
    /// Nothing, because such a socket is left to TCP.
    LeftToTcp,
    /// What a reader sees to whom messages are redirected.
    Redirect(&'static [&'static str]),
    /// What a socket does that is in the sockmap, however its bytes come: the observation of one that
    /// reads by TCP, and of one to whom they are redirected.
    Membership {
        by_tcp: &'static [&'static str],
        redirected: &'static [&'static str],
    },
}

impl Sockmap {
    /// What is to be seen on a path where plain TCP shows `tcp`.
    fn expected<'a>(self, path: Path, tcp: &'a [&'a str]) -> &'a [&'a str] {
        match (self, path) {
            (
                Self::Redirect(seen)
                | Self::Membership {
                    redirected: seen, ..
                },
                Path::Redirected,
            )
            | (Self::Membership { by_tcp: seen, .. }, Path::TcpInSockmap) => seen,
            (Self::AsTcp | Self::LeftToTcp, _)
            | (Self::Redirect(_), Path::TcpInSockmap)
            | (_, Path::Tcp) => tcp,
        }
    }
}

/// What applications can opt in to.
const OPT_INS: [PodFlags; 3] = [
    PodFlags::NONE,
    PodFlags::APP_WRITES,
    PodFlags::APP_WRITES.with(PodFlags::APP_READS),
];

/// Runs `observe` on every leg, for every opt-in. Plain TCP must show `tcp`; so must everything that
/// `sockmap` does not name.
#[track_caller]
fn check(tcp: &[&str], sockmap: Sockmap, observe: impl Fn(Pair) -> Vec<String>) {
    let mut wrong = Vec::new();
    for opt_in in OPT_INS {
        let legs = Legs::load(opt_in);
        for leg in Leg::ALL {
            let path = leg.path(opt_in);
            let before = legs.redirected_bytes(leg);
            let seen = observe(legs.pair(leg));
            let is_redirected = legs.redirected_bytes(leg) > before;
            let should_be = path == Path::Redirected && !matches!(sockmap, Sockmap::LeftToTcp);
            let expected = sockmap.expected(path, tcp);
            if seen != expected || is_redirected != should_be {
                let how = if is_redirected { "" } else { "not " };
                wrong.push(format!(
                    "{leg:?}, {opt_in:?}, {how}redirected: {seen:?} instead of {expected:?}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
