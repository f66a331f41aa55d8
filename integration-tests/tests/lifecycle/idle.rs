//! Connections between the sidecars whose readers do not read, in either direction.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
};

use anyhow::{Context as _, Result, ensure};

use crate::mesh::{Mesh, PATIENCE};

/// Largest number of bytes that lie unread in one direction: far below any receive buffer.
const MAX_UNREAD_BYTES: usize = 8 << 10;

/// Idle connections with unread bytes at both ends.
#[derive(Debug, Default)]
pub(crate) struct IdleConnections(Vec<Idle>);

#[derive(Debug)]
struct Idle {
    ends: [TcpStream; 2],
    /// Which it is, from which follows what was sent.
    number: usize,
}

impl IdleConnections {
    /// Opens so many more.
    pub(crate) fn open(&mut self, mesh: &Mesh, count: usize) -> Result<()> {
        for number in self.0.len()..self.0.len() + count {
            let (near, far) = mesh
                .connect_idle()
                .with_context(|| format!("idle connection {number}"))?;
            let mut ends = [near, far];
            for (side, end) in ends.iter_mut().enumerate() {
                for part in unread(number, side).chunks(1 + number) {
                    end.write_all(part)?;
                }
            }
            self.0.push(Idle { ends, number });
        }
        Ok(())
    }

    pub(crate) fn unread_bytes(&self) -> usize {
        let both = |idle: &Idle| unread(idle.number, 0).len() + unread(idle.number, 1).len();
        self.0.iter().map(both).sum()
    }

    /// Sends a last word in each direction, closes, and reads everything.
    pub(crate) fn finish(self) -> Result<()> {
        for idle in self.0 {
            let number = idle.number;
            for (side, mut end) in idle.ends.iter().enumerate() {
                end.write_all(&last_word(number, side))
                    .with_context(|| format!("idle connection {number}, end {side}"))?;
                end.shutdown(Shutdown::Write)?;
            }
            for (side, mut end) in idle.ends.iter().enumerate() {
                end.set_read_timeout(Some(PATIENCE))?;
                let mut bytes = Vec::new();
                end.read_to_end(&mut bytes)
                    .with_context(|| format!("idle connection {number}, end {side}"))?;
                let other = 1 - side;
                let expected = [unread(number, other), last_word(number, other)].concat();
                ensure!(
                    bytes == expected,
                    "idle connection {number}, end {side}: {} bytes came, {} were sent",
                    bytes.len(),
                    expected.len()
                );
            }
        }
        Ok(())
    }
}

/// What one end of a connection sends before the rest of the test: other bytes, and another number of
/// them, for each.
fn unread(number: usize, side: usize) -> Vec<u8> {
    let seed = 2 * number + side + 1;
    let length = seed.wrapping_mul(2_654_435_761) % MAX_UNREAD_BYTES + 1;
    (0..length)
        .map(|at| (seed * 31 + at).wrapping_mul(2_654_435_761).to_le_bytes()[1])
        .collect()
}

fn last_word(number: usize, side: usize) -> Vec<u8> {
    format!("the end of {number}, {side}").into_bytes()
}
