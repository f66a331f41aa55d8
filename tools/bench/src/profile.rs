//! Where a server's processor time goes: samples of `perf`, sorted into what the work is for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;

use crate::contender::{Contender, Series, Server};
use crate::perf::{self, Sample, Whom};
use crate::report::{Cell, Report};
use crate::statistics::float;

/// Functions that are listed by name.
const LISTED: usize = 25;

/// Beside the series: until perf attaches, and until the last ACKs.
const MARGIN: Duration = Duration::from_millis(500);

/// What a sample in the kernel was for, by a function that called it.
const KERNEL: [(&str, &[&str]); 7] = [
    (
        "kernel: write to sockets",
        &["sys_write", "do_writev", "sys_sendto", "sys_sendmsg"],
    ),
    (
        "kernel: read from sockets",
        &["sys_read", "do_readv", "sys_recvfrom", "sys_recvmsg"],
    ),
    ("kernel: epoll", &["sys_epoll", "ep_poll"]),
    ("kernel: wake and park threads", &["sys_futex", "do_futex"]),
    ("kernel: other calls", &["do_syscall_64", "sys_"]),
    ("kernel: page faults", &["exc_page_fault"]),
    ("kernel: interrupts", &["sysvec_", "common_interrupt"]),
];

/// What a sample in the program was for, by the name that comes first in its symbol.
const PROGRAM: [(&str, &str); 24] = [
    ("__rust_alloc", ALLOCATOR),
    ("__rust_dealloc", ALLOCATOR),
    ("__rust_realloc", ALLOCATOR),
    ("__rdl_", ALLOCATOR),
    ("__rustc", ALLOCATOR),
    ("isthmus_heap", ALLOCATOR),
    ("malloc", ALLOCATOR),
    ("calloc", ALLOCATOR),
    ("realloc", ALLOCATOR),
    ("free", ALLOCATOR),
    ("memmove", COPIES),
    ("memcpy", COPIES),
    ("memset", COPIES),
    ("memcmp", COPIES),
    ("isthmus_http2", "HTTP/2"),
    ("hyper", "HTTP/2"),
    ("h2::", "HTTP/2"),
    ("tonic", "HTTP/2"),
    ("isthmus_xds_core", "protocol core"),
    ("isthmus_xds", "sessions, metrics, plane"),
    ("prost", "protobuf decoding"),
    ("isthmus_proto", "protobuf decoding"),
    ("tokio", "tokio: tasks, timers, drivers"),
    ("mio", "tokio: tasks, timers, drivers"),
];
const ALLOCATOR: &str = "allocator";
const COPIES: &str = "copying and clearing memory";
const OTHER: &str = "program: other";

/// A profile of one series of changes.
#[derive(Debug)]
pub(crate) struct Profile {
    // Milliseconds of one change, by what they were for.
    buckets: BTreeMap<&'static str, f64>,
    functions: String,
}

/// Puts a server through a series while perf looks.
pub(crate) fn during(
    contender: &mut Contender,
    series: &Series,
    files: &Path,
) -> anyhow::Result<Profile> {
    let data = files.join(format!("{}.perf", contender.server.name()));
    let duration = series.interval * series.changes + 2 * MARGIN;
    let recording = perf::record(Whom::Process(contender.pid()), data, duration)?;
    std::thread::sleep(MARGIN);
    let outcome = contender.change(series)?;
    let text = recording.finish()?;
    let samples: Vec<Sample<'_>> = perf::samples(&text).collect();
    if samples.is_empty() {
        bail!("perf saw nothing");
    }
    let whole = outcome.cpu.as_secs_f64() * 1000.0 / f64::from(series.changes);
    let each = whole / float(samples.len() as u64);
    let mut buckets: BTreeMap<&'static str, f64> = BTreeMap::new();
    let mut functions: BTreeMap<&str, u64> = BTreeMap::new();
    for sample in &samples {
        *buckets.entry(bucket(sample)).or_default() += each;
        *functions.entry(sample.leaf.symbol).or_default() += 1;
    }
    Ok(Profile {
        buckets,
        functions: list(&functions, samples.len()),
    })
}

impl Profile {
    /// Puts it into the report.
    pub(crate) fn put(self, report: &mut Report, cell: Cell, server: Server) {
        let mut buckets: Vec<(&'static str, f64)> = self.buckets.into_iter().collect();
        buckets.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        let whole: f64 = buckets.iter().map(|(_, ms)| ms).sum();
        report.put(cell, "CPU per change", "ms", server, whole);
        for (bucket, ms) in buckets {
            report.put(cell, bucket, "ms", server, ms);
        }
        let title = format!("functions of {}, {cell}", server.name());
        report.notes.push(format!("{title}\n{}", self.functions));
    }
}

fn list(functions: &BTreeMap<&str, u64>, samples: usize) -> String {
    let mut functions: Vec<(&str, u64)> = functions.iter().map(|(name, it)| (*name, *it)).collect();
    functions.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let mut out = String::new();
    for (name, count) in functions.into_iter().take(LISTED) {
        let percent = float(count) * 100.0 / float(samples as u64);
        let _ = writeln!(out, "{percent:>6.1} %  {name}");
    }
    out
}

fn bucket(sample: &Sample<'_>) -> &'static str {
    if !sample.leaf.is_kernel {
        return bucket_of_program(sample.leaf.symbol);
    }
    let has = |names: &[&str]| {
        sample
            .kernel()
            .any(|symbol| names.iter().any(|name| symbol.contains(name)))
    };
    let found = KERNEL.iter().find(|(_, names)| has(names));
    found.map_or("kernel: other", |(bucket, _)| bucket)
}

fn bucket_of_program(symbol: &str) -> &'static str {
    let found = PROGRAM
        .iter()
        .filter_map(|(name, bucket)| {
            Some((symbol.find(name)?, std::cmp::Reverse(name.len()), bucket))
        })
        .min();
    found.map_or(OTHER, |(_, _, bucket)| bucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_sorted_by_what_they_were_for() {
        let cases = [
            (
                " ffffffff1 tcp_sendmsg ([kernel.kallsyms])\n ffffffff2 ksys_write ([kernel.kallsyms])\n ffffffff3 do_syscall_64 ([kernel.kallsyms])\n 12 __write (/usr/lib/libc.so.6)",
                "kernel: write to sockets",
            ),
            (
                " ffffffff1 schedule ([kernel.kallsyms])\n ffffffff2 ep_poll ([kernel.kallsyms])",
                "kernel: epoll",
            ),
            (
                " ffffffff1 clear_page ([kernel.kallsyms])\n ffffffff2 asm_exc_page_fault ([kernel.kallsyms])",
                "kernel: page faults",
            ),
            (
                " 1 isthmus_xds_core::stream::Stream::poll (/bin/isthmus-bench)",
                "protocol core",
            ),
            (
                " 1 <isthmus_xds::grpc::Body as http_body::Body>::poll_frame (/bin/isthmus-bench)",
                "sessions, metrics, plane",
            ),
            (
                " 1 tokio::runtime::task::raw::poll<isthmus_http2::Connection> (/bin/isthmus-bench)",
                "tokio: tasks, timers, drivers",
            ),
            (" 1 cfree@GLIBC_2.2.5 (/usr/lib/libc.so.6)", ALLOCATOR),
            (
                " 1 __memmove_avx_unaligned_erms (/usr/lib/libc.so.6)",
                COPIES,
            ),
            (" 1 [unknown] (/usr/lib/libc.so.6)", OTHER),
        ];
        for (frames, expected) in cases {
            let block = format!("server\n{frames}");
            let sample = perf::samples(&block).next().expect("it has frames");
            assert_eq!(bucket(&sample), expected, "{block}");
        }
    }
}
