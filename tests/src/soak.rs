//! Whether a process that was watched for long keeps more and more. Owns: samples of what it holds, and their trends. Refuses to
//! know how it is asked. A trend is a line of least squares, so that one high second at either end decides nothing.

/// What a server held at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Seconds from the start.
    pub at: f64,
    /// Resident memory in KiB.
    pub rss_kib: f64,
    /// Requests in a slot.
    pub running: f64,
    /// Blocks of the cache that requests hold; what is only remembered is not among them.
    pub blocks: f64,
}

/// How a figure moved.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Trend {
    pub mean: f64,
    /// From the line's beginning to its end.
    pub growth: f64,
    /// The standard error of the growth.
    pub error: f64,
    /// Seconds.
    pub span: f64,
}

impl Trend {
    /// Of points (seconds, value); all zero where there are fewer than three, or all at one moment.
    #[must_use]
    pub fn of(points: &[(f64, f64)]) -> Self {
        let count = points.len() as f64;
        let mean = |value: fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>() / count;
        let (middle, level) = (mean(|point| point.0), mean(|point| point.1));
        let spread: f64 = points.iter().map(|(at, _)| (at - middle).powi(2)).sum();
        if points.len() < 3 || spread <= 0.0 {
            return Self::default();
        }
        let both: f64 = points
            .iter()
            .map(|(at, value)| (at - middle) * (value - level))
            .sum();
        let slope = both / spread;
        let left = |(at, value): &(f64, f64)| (value - level - slope * (at - middle)).powi(2);
        let variance = points.iter().map(left).sum::<f64>() / (count - 2.0);
        let span = points[points.len() - 1].0 - points[0].0;
        Self {
            mean: level,
            growth: slope * span,
            error: (variance / spread).sqrt() * span,
            span,
        }
    }

    /// It grew by more than `tolerance`, and by more than chance explains.
    #[must_use]
    pub fn rises(&self, tolerance: f64) -> bool {
        self.growth > tolerance && self.growth > 3.0 * self.error
    }

    #[must_use]
    pub fn per_hour(&self) -> f64 {
        if self.span > 0.0 {
            self.growth / self.span * 3600.0
        } else {
            0.0
        }
    }
}

/// Samples of the second half, in which everything has its size.
#[must_use]
pub fn second_half(samples: &[Sample]) -> &[Sample] {
    let middle = samples.last().map_or(0.0, |last| last.at / 2.0);
    &samples[samples.partition_point(|sample| sample.at < middle)..]
}

#[must_use]
pub fn memory(samples: &[Sample]) -> Trend {
    let points = samples.iter().map(|sample| (sample.at, sample.rss_kib));
    Trend::of(&points.collect::<Vec<_>>())
}

/// Blocks for each running request: more of these than before are blocks that nobody gives back.
#[must_use]
pub fn blocks_each(samples: &[Sample]) -> Trend {
    let busy = samples.iter().filter(|sample| sample.running > 0.0);
    let points = busy.map(|sample| (sample.at, sample.blocks / sample.running));
    Trend::of(&points.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 600 seconds of 200 MiB and 12 blocks for each of six requests, a little uneven, with so much more each second.
    fn samples(kib: f64, blocks: f64) -> Vec<Sample> {
        (0..600)
            .map(|at| {
                let (second, uneven) = (f64::from(at), f64::from(at * 7919 % 101) - 50.0);
                Sample {
                    at: second,
                    rss_kib: 204_800.0 + 8.0 * uneven + kib * second,
                    running: if at % 50 == 0 { 0.0 } else { 6.0 },
                    blocks: 72.0 + uneven / 5.0 + blocks * second,
                }
            })
            .collect()
    }

    #[test]
    fn what_is_level_does_not_rise() {
        let all = samples(0.0, 0.0);
        let half = second_half(&all);
        assert_eq!((half.len(), half[0].at), (300, 300.0));
        assert!(!memory(half).rises(2048.0), "{:?}", memory(half));
        assert!(!blocks_each(half).rises(0.5), "{:?}", blocks_each(half));
        assert!((blocks_each(half).mean - 12.0).abs() < 0.2);
    }

    #[test]
    fn small_leaks_are_seen() {
        // 10 KiB a second, and a block each ten seconds.
        let all = samples(10.0, 0.1);
        let half = second_half(&all);
        assert!(memory(half).rises(2048.0), "{:?}", memory(half));
        assert!(
            (memory(half).per_hour() / 36_000.0 - 1.0).abs() < 0.05,
            "{:?}",
            memory(half)
        );
        assert!(blocks_each(half).rises(0.5), "{:?}", blocks_each(half));
    }

    #[test]
    fn one_high_second_is_no_trend_and_nothing_is_none() {
        let mut all = samples(0.0, 0.0);
        all[599].rss_kib *= 2.0;
        assert!(!memory(second_half(&all)).rises(2048.0));
        assert_eq!(memory(&[]), Trend::default());
        assert_eq!(memory(&all[..2]), Trend::default());
        assert_eq!(memory(&[all[0]; 5]), Trend::default());
    }
}
