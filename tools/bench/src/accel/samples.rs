//! Where the time goes: what all processors do while a path is under load, by perf.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path as FilePath;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::perf::{self, Recording, Sample, Whom};
use crate::statistics::float;

/// What work of the kernel is for, by the innermost function that says so.
const KERNEL: [(&str, &[&str]); 7] = [
    (
        "kernel: iptables and conntrack",
        &["nf_", "nft_", "ipt_", "xt_", "nat_"],
    ),
    (
        "kernel: sockmap and BPF programs",
        &[
            "sk_psock",
            "tcp_bpf",
            "sk_msg",
            "bpf_prog",
            "bpf_",
            "__cgroup_bpf",
        ],
    ),
    (
        "kernel: veth and bridge",
        &[
            "veth_",
            "br_",
            "netif_",
            "__netif",
            "dev_queue",
            "net_rx_action",
            "process_backlog",
        ],
    ),
    (
        "kernel: TCP and IP",
        &[
            "tcp_",
            "__tcp",
            "ip_",
            "__ip",
            "inet_",
            "skb_",
            "__alloc_skb",
            "sock_",
            "__sock",
            "sk_",
        ],
    ),
    (
        "kernel: scheduling and epoll",
        &[
            "schedule",
            "ep_",
            "epoll",
            "try_to_wake_up",
            "ttwu",
            "futex",
            "pick_next",
            "enqueue",
            "dequeue",
            "update_curr",
            "finish_task_switch",
        ],
    ),
    (
        "kernel: copying memory",
        &["copy_", "_copy", "memcpy", "clear_page"],
    ),
    (
        "kernel: entry and exit of calls",
        &["syscall", "entry_SYSCALL"],
    ),
];
const KERNEL_OTHER: &str = "kernel: other";
const IDLE: [&str; 4] = [
    "default_idle",
    "native_safe_halt",
    "pv_native_safe_halt",
    "cpuidle",
];

/// Starts to look at all processors.
pub(super) fn record(files: &FilePath, seconds: f64) -> Result<Recording> {
    let duration = Duration::from_secs_f64(seconds);
    perf::record(Whom::Machine, files.join("accel.perf"), duration)
}

/// Waits for the end of a recording and sorts the samples.
pub(super) fn finish(recording: Recording) -> Result<Profile> {
    let profile = Profile::parse(&recording.finish()?);
    ensure!(!profile.0.is_empty(), "perf saw nothing");
    Ok(profile)
}

/// Samples by what they were for.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Profile(BTreeMap<String, u64>);

impl Profile {
    fn parse(text: &str) -> Self {
        let mut counts = BTreeMap::new();
        for bucket in perf::samples(text).filter_map(|sample| bucket(&sample)) {
            *counts.entry(bucket).or_default() += 1;
        }
        Self(counts)
    }

    /// The shares of a request's processor time, the largest first.
    pub(super) fn render(&self, cpu_us_per_request: f64) -> String {
        let whole: u64 = self.0.values().sum();
        let mut buckets: Vec<(&String, &u64)> = self.0.iter().collect();
        buckets.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let mut out = String::new();
        for (bucket, count) in buckets {
            let share = float(*count) / float(whole);
            let us = share * cpu_us_per_request;
            let _ = writeln!(out, "{:>8.1} us {:>5.1} %  {bucket}", us, share * 100.0);
        }
        out
    }
}

fn bucket(sample: &Sample<'_>) -> Option<String> {
    if !sample.leaf.is_kernel {
        return Some(format!("{}: itself", name_of(sample.thread)));
    }
    let is_idle = |symbol: &str| IDLE.iter().any(|idle| symbol.contains(idle));
    if sample.kernel().any(is_idle) {
        return None;
    }
    let named = sample.kernel().find_map(|symbol| {
        KERNEL
            .iter()
            .find(|(_, names)| names.iter().any(|name| symbol.starts_with(name)))
    });
    Some(named.map_or(KERNEL_OTHER, |(name, _)| name).to_owned())
}

// Threads of Envoy are called `wrk:worker_0`; ours have the program's name.
fn name_of(program: &str) -> &str {
    match program {
        _ if program.starts_with("wrk:worker") || program.starts_with("envoy") => "Envoy",
        _ if program.starts_with("isthmus-bench") => "load and application",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_sorted_by_what_they_were_for() {
        let cases = [
            (
                "wrk:worker_0\n  5 Envoy::Http::x (/tools/envoy)",
                Some("Envoy: itself"),
            ),
            (
                "isthmus-bench\n  5 h2::proto (/bin/isthmus-bench)",
                Some("load and application: itself"),
            ),
            (
                "wrk:worker_0\n  f1 nf_hook_slow ([kernel.kallsyms])\n  f2 ip_output ([kernel.kallsyms])",
                Some("kernel: iptables and conntrack"),
            ),
            (
                "wrk:worker_0\n  f1 memset_orig ([kernel.kallsyms])\n  f2 tcp_sendmsg ([kernel.kallsyms])",
                Some("kernel: TCP and IP"),
            ),
            (
                "wrk:worker_0\n  f1 bpf_prog_ab_isthmus_skmsg (bpf_prog_ab_isthmus_skmsg)\n  f2 tcp_bpf_sendmsg ([kernel.kallsyms])",
                Some("kernel: sockmap and BPF programs"),
            ),
            ("swapper\n  f1 default_idle ([kernel.kallsyms])", None),
            ("x\n  f1 unheard_of ([kernel.kallsyms])", Some(KERNEL_OTHER)),
        ];
        for (block, expected) in cases {
            let sample = perf::samples(block).next().expect("it has frames");
            assert_eq!(bucket(&sample).as_deref(), expected, "{block}");
        }
    }

    #[test]
    fn shares_are_of_what_is_not_idle() {
        let text = "wrk:worker_0\n  5 a (/tools/envoy)\n\nwrk:worker_0\n  f1 tcp_ack ([kernel.kallsyms])\n\nswapper\n  f1 default_idle ([kernel.kallsyms])\n";
        let shown = Profile::parse(text).render(100.0);
        assert!(shown.contains("50.0 us  50.0 %  Envoy: itself"), "{shown}");
        assert!(
            shown.contains("50.0 us  50.0 %  kernel: TCP and IP"),
            "{shown}"
        );
    }
}
