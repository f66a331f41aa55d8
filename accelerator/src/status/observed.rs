//! What became of connect calls, and how long connections took.

use isthmus_accel_abi::{
    Histogram, MAX_PARKED_BYTES_PER_POD, MAX_PARKED_MESSAGES_PER_POD, Measure, VerdictCode,
};
use isthmus_accel_datapath::{LatencyRow, ParkedRow, VerdictRow};
use serde::Serialize;

use super::{Names, by_name};

/// What lies unread at the readers of one pod past TCP.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Parked {
    /// The reading pod, `null` if no agent has left its name.
    pub pod: Option<String>,
    /// Its network namespace.
    pub netns_cookie: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// Bytes from which on TCP carries everything.
    pub limit_bytes: u64,
    /// Messages, each counted until its queue is seen empty.
    pub messages: u64,
    /// Messages from which on TCP carries everything.
    pub limit_messages: u64,
}

/// Connect calls of one pod with one outcome. Counted since the pod was added.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Verdict {
    /// The calling pod, `null` if no agent has left its name.
    pub pod: Option<String>,
    /// Its network namespace.
    pub netns_cookie: u64,
    /// `redirected`, `followed`, `passed` or `no_room`.
    pub verdict: &'static str,
    /// Why it was left alone.
    pub reason: Option<&'static str>,
    /// The rows of Istio's rules that say so.
    pub rows: Option<&'static str>,
    /// How many.
    pub connections: u64,
}

/// How long the connections of one hop of one pod took. Counted since the pod was added.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Latency {
    /// The pod of the socket, `null` if no agent has left its name.
    pub pod: Option<String>,
    /// Its network namespace.
    pub netns_cookie: u64,
    /// Hop of what the socket sends.
    pub hop: &'static str,
    /// `connect`: from SYN to established; `srtt`: TCP's smoothed round-trip time at the end.
    pub measure: &'static str,
    /// Number of values.
    pub count: u64,
    /// Their sum in microseconds.
    pub sum_us: u64,
    /// How many were in each bucket, not cumulative.
    pub buckets: Vec<Bucket>,
}

/// Values above the bound of the bucket before, up to this one's.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Bucket {
    /// The largest value in microseconds; `null` for the last bucket, which has no bound.
    pub up_to_us: Option<u32>,
    /// How many.
    pub count: u64,
}

impl Latency {
    /// Returns the bound of the bucket that holds the value below which `percent` of all values lie:
    /// `None` without values, `Some(None)` if that bucket has no bound.
    #[must_use]
    pub fn quantile_bound_us(&self, percent: u64) -> Option<Option<u32>> {
        let rank = u128::from(self.count) * u128::from(percent);
        let mut seen = 0_u128;
        let bucket = self.buckets.iter().find(|bucket| {
            seen += u128::from(bucket.count);
            seen > 0 && seen * 100 >= rank
        });
        bucket.map(|bucket| bucket.up_to_us)
    }
}

pub(super) fn verdicts(rows: &[VerdictRow], names: &Names<'_>) -> Vec<Verdict> {
    let of_row = |row: &VerdictRow| {
        let pod = names.get(&row.netns_cookie).map(|name| (*name).to_owned());
        let (netns_cookie, counts) = (row.netns_cookie, row.verdicts.counts);
        VerdictCode::all()
            .zip(counts)
            .filter(|(_, connections)| *connections > 0)
            .map(move |(code, connections)| {
                let cause = code.pass_cause();
                Verdict {
                    pod: pod.clone(),
                    netns_cookie,
                    verdict: code.name(),
                    reason: cause.map(isthmus_accel_abi::PassCause::name),
                    rows: cause
                        .map(isthmus_accel_abi::PassCause::rows)
                        .filter(|rows| !rows.is_empty()),
                    connections,
                }
            })
            .collect::<Vec<_>>()
    };
    let mut verdicts: Vec<Verdict> = rows.iter().flat_map(of_row).collect();
    verdicts.sort_by(|a, b| {
        by_name(a.pod.as_deref(), a.netns_cookie).cmp(&by_name(b.pod.as_deref(), b.netns_cookie))
    });
    verdicts
}

pub(super) fn parked(rows: &[ParkedRow], names: &Names<'_>) -> Vec<Parked> {
    let of_row = |row: &ParkedRow| Parked {
        pod: names.get(&row.netns_cookie).map(|name| (*name).to_owned()),
        netns_cookie: row.netns_cookie,
        bytes: row.sum.bytes,
        limit_bytes: MAX_PARKED_BYTES_PER_POD,
        messages: row.sum.messages,
        limit_messages: MAX_PARKED_MESSAGES_PER_POD,
    };
    let mut parked: Vec<Parked> = rows.iter().map(of_row).collect();
    parked.sort_by(|a, b| {
        by_name(a.pod.as_deref(), a.netns_cookie).cmp(&by_name(b.pod.as_deref(), b.netns_cookie))
    });
    parked
}

pub(super) fn latencies(rows: &[LatencyRow], names: &Names<'_>) -> Vec<Latency> {
    let mut rows: Vec<&LatencyRow> = rows.iter().collect();
    rows.sort_by_key(|row| row.key);
    let of_row = |row: &LatencyRow| Latency {
        pod: names
            .get(&row.key.netns_cookie)
            .map(|name| (*name).to_owned()),
        netns_cookie: row.key.netns_cookie,
        hop: row.key.hop.name(),
        measure: match row.key.measure {
            Measure::CONNECT => "connect",
            Measure::SRTT => "srtt",
            _ => "unknown",
        },
        count: row.histogram.count(),
        sum_us: row.histogram.sum_us,
        buckets: (0..Histogram::BUCKETS)
            .zip(row.histogram.counts)
            .map(|(bucket, count)| Bucket {
                up_to_us: Histogram::bound_us(bucket),
                count,
            })
            .collect(),
    };
    let mut latencies: Vec<Latency> = rows.into_iter().map(of_row).collect();
    latencies.sort_by(|a, b| {
        by_name(a.pod.as_deref(), a.netns_cookie).cmp(&by_name(b.pod.as_deref(), b.netns_cookie))
    });
    latencies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_bound_of_its_bucket() {
        let latency = |counts: [u64; 3]| Latency {
            pod: None,
            netns_cookie: 1,
            hop: "app_to_proxy",
            measure: "connect",
            count: counts.iter().sum(),
            sum_us: 0,
            buckets: [Some(2), Some(8), None]
                .into_iter()
                .zip(counts)
                .map(|(up_to_us, count)| Bucket { up_to_us, count })
                .collect(),
        };
        let cases = [
            ("no values", [0, 0, 0], 50, None),
            ("half of them", [50, 50, 0], 50, Some(Some(2))),
            ("one more than half", [50, 50, 0], 51, Some(Some(8))),
            ("all in the second", [0, 1, 0], 1, Some(Some(8))),
            ("beyond all bounds", [98, 0, 2], 99, Some(None)),
            ("the very first", [1, 0, 99], 0, Some(Some(2))),
        ];
        for (name, counts, percent, expected) in cases {
            let found = latency(counts).quantile_bound_us(percent);
            assert_eq!(found, expected, "{name}");
        }
    }
}
