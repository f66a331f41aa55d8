//! How long connections take, as histograms that the kernel can fill.

use crate::Hop;

/// What a histogram is of.
#[derive(
    Clone, Copy, Debug, Eq, Hash, PartialEq, Ord, PartialOrd, bytemuck::Pod, bytemuck::Zeroable,
)]
#[repr(transparent)]
pub struct Measure(u32);

impl Measure {
    /// From SYN to established, at the connecting end.
    pub const CONNECT: Self = Self(1);
    /// TCP's smoothed round-trip time when the socket closes. Of a hop that skips TCP it is that of the
    /// handshake.
    pub const SRTT: Self = Self(2);
}

/// Key of `LATENCY`.
#[derive(
    Clone, Copy, Debug, Eq, Hash, PartialEq, Ord, PartialOrd, bytemuck::Pod, bytemuck::Zeroable,
)]
#[repr(C)]
pub struct LatencyKey {
    /// Namespace of the socket.
    pub netns_cookie: u64,
    /// Hop of what it sends.
    pub hop: Hop,
    /// What is measured.
    pub measure: Measure,
}

/// Value of `LATENCY`, one per CPU: since the pod was added.
#[derive(Clone, Copy, Debug, Eq, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Histogram {
    /// Sum of all values in microseconds.
    pub sum_us: u64,
    /// How many values were in each bucket (not cumulative); the last one has no upper bound.
    pub counts: [u64; Histogram::BUCKETS],
}

impl Histogram {
    /// Number of buckets: 2 µs, 8 µs, 32 µs … 8.4 s, and what takes longer.
    pub const BUCKETS: usize = 13;

    const FIRST_BOUND_US: u32 = 2;

    /// No values.
    pub const EMPTY: Self = Self {
        sum_us: 0,
        counts: [0; Self::BUCKETS],
    };

    /// Returns the bucket of a value.
    #[must_use]
    #[inline]
    pub const fn bucket(value_us: u32) -> usize {
        // Two binary digits a bucket: a round trip on one machine and one across the world are 12
        // buckets apart, and a scrape carries them for each hop of each pod. By comparing: the verifier
        // loses the bound of a count of digits.
        let mut bucket = 0;
        let mut bound_us = Self::FIRST_BOUND_US;
        while bucket + 1 < Self::BUCKETS && value_us > bound_us {
            bucket += 1;
            bound_us <<= 2;
        }
        bucket
    }

    /// Returns the largest value of a bucket in microseconds, `None` if it has no bound.
    #[must_use]
    pub const fn bound_us(bucket: usize) -> Option<u32> {
        if bucket + 1 < Self::BUCKETS {
            Some(Self::FIRST_BOUND_US << (2 * bucket))
        } else {
            None
        }
    }

    /// Returns the number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds the values of another CPU.
    pub fn add(&mut self, other: &Self) {
        self.sum_us = self.sum_us.wrapping_add(other.sum_us);
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum = sum.wrapping_add(count);
        }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::EMPTY
    }
}

const _: () = assert!(size_of::<LatencyKey>() == 16);
const _: () = assert!(size_of::<Histogram>() == 112);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let values = (0..31).flat_map(|bits| [(1 << bits) - 1, 1 << bits, (1 << bits) + 1]);
        for value_us in values.chain([0, u32::MAX]) {
            let expected = (0..Histogram::BUCKETS).find(|bucket| {
                Histogram::bound_us(*bucket).is_none_or(|bound_us| value_us <= bound_us)
            });
            assert_eq!(Some(Histogram::bucket(value_us)), expected, "{value_us} µs");
        }
    }

    #[test]
    fn bounds_reach_from_a_loopback_to_a_lost_syn() {
        assert_eq!(Histogram::bound_us(0), Some(2));
        assert_eq!(Histogram::bound_us(11), Some(8_388_608));
        assert_eq!(Histogram::bound_us(12), None);
    }
}
