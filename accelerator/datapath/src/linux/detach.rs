//! Taking everything out again, without losing a byte.

use std::{
    os::fd::AsFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use isthmus_accel_abi::{Settings, SettingsMode, SockKey, program};

use super::{maps::Maps, pins::Pins, sys};
use crate::DatapathError;

/// How long established connections may take to be taken over by the accepting end: many times a
/// handshake on one machine.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(1);
/// How long readers may take to read what was redirected before. Those that stall longer lose it.
const READER_PATIENCE: Duration = Duration::from_secs(5);
/// How often a condition is looked at while waiting for it.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// What [`detach`] found and left.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DetachReport {
    /// Sockets that were in the sockmap; their connections go on by TCP.
    pub sockets: usize,
    /// Bytes that were redirected and had not been read within 5 s: they are lost.
    pub lost_bytes: u64,
}

/// Removes programs, links, maps, pins and directories. With nothing there, it does nothing.
///
/// New connections are left alone first; then nothing skips TCP any more; then, bounded, the readers
/// get the time to read what already did; then the maps go. The BPF filesystem stays mounted.
///
/// # Errors
///
/// Returns [`DatapathError::Kernel`] for what could not be removed; calling it again goes on.
pub fn detach(pin_dir: &Path) -> Result<DetachReport, DatapathError> {
    let pins = Pins::new(pin_dir);
    Pins::unpin(&pins.link(program::CONNECT4))?;

    // What cannot be opened cannot be waited for, but is removed all the same.
    let mut report = DetachReport::default();
    if let Ok(maps) = Maps::open(&pins) {
        if let Ok(settings) = Maps::settings(&pins) {
            let stopped = Settings {
                mode: SettingsMode::REDIRECT_ONLY,
                ..settings
            };
            maps.settings.put(&0, &stopped)?;
        }
        let deadline = Instant::now() + HANDSHAKE_PATIENCE;
        while !maps.tuples.keys()?.is_empty() && Instant::now() < deadline {
            thread::sleep(POLL_INTERVAL);
        }
        Pins::unpin(&pins.link(program::SOCK_OPS))?;
        report = drain(&pins, &maps)?;
    }
    pins.remove_all()?;
    Ok(report)
}

/// Waits until each socket was seen once with nothing parked: nothing is parked any more by then.
fn drain(pins: &Pins, maps: &Maps) -> Result<DetachReport, DatapathError> {
    let mut waiting = maps.ends.keys()?;
    let sockets = waiting.len();
    let Ok(program) = sys::open_pinned(&pins.program(program::PARKED)) else {
        return Ok(DetachReport {
            sockets,
            lost_bytes: 0,
        });
    };
    let parked =
        |key: &SockKey| sys::test_run(program.as_fd(), bytemuck::bytes_of(key)).unwrap_or(0);

    let deadline = Instant::now() + READER_PATIENCE;
    loop {
        waiting.retain(|key| parked(key) > 0);
        if waiting.is_empty() || Instant::now() >= deadline {
            break;
        }
        thread::sleep(POLL_INTERVAL);
    }
    let lost_bytes = waiting.iter().map(|key| u64::from(parked(key))).sum();
    Ok(DetachReport {
        sockets,
        lost_bytes,
    })
}
