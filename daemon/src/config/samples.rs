//! `[samples]`: which windows are kept for training, how many of them, and how fast they may be fetched.

use super::{
    Config,
    raw::{Node, Table},
};
use crate::limits;

/// `[samples]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Samples {
    /// Maximum size of what is kept, bytes; 0: no window is kept.
    pub max_bytes: u64,
    /// Windows without a label are removed after so many days.
    pub days: u64,
    /// Windows of normal running that are kept each day, of each pipeline.
    pub normal_per_day: u64,
    /// Windows before an alarm, and after it, that do not overlap one another.
    pub around: usize,
    /// Rate of pulls, bytes/s.
    pub pull_bytes_s: u64,
    /// Bytes of pulls a day; 0: unlimited.
    pub pull_bytes_day: u64,
}

impl Default for Samples {
    fn default() -> Self {
        Self {
            max_bytes: 0,
            days: limits::SAMPLES_DAYS,
            normal_per_day: limits::SAMPLES_NORMAL_PER_DAY,
            around: limits::SAMPLES_AROUND,
            pull_bytes_s: limits::PULL_KIB_S << 10,
            pull_bytes_day: limits::PULL_MIB_DAY << 20,
        }
    }
}

impl Samples {
    /// Windows are kept.
    pub fn is_on(&self) -> bool {
        self.max_bytes > 0
    }

    /// What it means for a pipeline whose windows have so many bytes of values.
    fn of_pipeline(&self, name: &str, values: u64) -> Vec<String> {
        let bytes = on_disk(values + HEAD_BYTES);
        let fit = (self.max_bytes / bytes).min(limits::SAMPLES_MAX as u64);
        let (days, normal) = (self.days, self.normal_per_day * self.days);
        let mut lines = vec![format!(
            "samples: pipeline {name}: {} KiB a window, {fit} fit; normal running adds {normal} in {days} days, an alarm {}",
            bytes >> 10,
            self.around * 2 + 1,
        )];
        if normal > fit {
            let mib = (normal * bytes).div_ceil(1 << 20);
            lines.push(format!(
                "samples: pipeline {name}: its normal running alone needs {mib} MiB; the oldest leave before {days} days are over"
            ));
        }
        lines
    }
}

pub(super) fn samples(root: &mut Table<'_>, node: Option<Node>) -> Samples {
    let mut samples = Samples::default();
    let Some(node) = node else { return samples };
    let mut t = root.sub("samples".into(), node);
    samples.max_bytes = t.int("max_mib", 0..=limits::SAMPLES_MIB_MAX).map_or(0, |n| (n as u64) << 20);
    samples.days = t.int("days", 1..=3650).map_or(samples.days, |n| n as u64);
    samples.normal_per_day = t.int("normal_per_day", 0..=86_400).map_or(samples.normal_per_day, |n| n as u64);
    samples.around = t.int("around_windows", 0..=64).map_or(samples.around, |n| n as usize);
    samples.pull_bytes_s = t.int("pull_kib_s", 1..=1024).map_or(samples.pull_bytes_s, |n| (n as u64) << 10);
    samples.pull_bytes_day = t.int("pull_mib_day", 0..=1 << 20).map_or(samples.pull_bytes_day, |n| (n as u64) << 20);
    t.finish();
    samples
}

impl Config {
    /// What `[samples]` amounts to, for `kentledge check`: how many windows fit, and what normal running takes of them.
    pub fn samples_explained(&self) -> Vec<String> {
        let samples = &self.samples;
        if !samples.is_on() {
            return Vec::new();
        }
        let (mib, days) = (samples.max_bytes >> 20, samples.days);
        let mut lines = vec![format!(
            "samples: {mib} MiB at most, {days} days; fetched with {} KiB/s, {}",
            samples.pull_bytes_s >> 10,
            match samples.pull_bytes_day >> 20 {
                0 => "without a limit a day".to_owned(),
                mib => format!("{mib} MiB a day"),
            }
        )];
        for pipeline in &self.pipelines {
            let values = (pipeline.steps * pipeline.channels.len()) as u64 * 4;
            lines.extend(samples.of_pipeline(&pipeline.name, values));
        }
        lines
    }
}

/// A header as most are.
const HEAD_BYTES: u64 = 700;

/// Bytes of a file of this length on the disk.
fn on_disk(len: u64) -> u64 {
    len.div_ceil(limits::SAMPLES_BLOCK).max(1) * limits::SAMPLES_BLOCK
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layer, build};

    fn of(text: &str) -> Result<Config, Vec<String>> {
        build::build(&[Layer::Given(text.to_owned())])
            .map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn samples_are_off_without_a_size_and_keys_are_read_in_their_units() {
        let off = of("[samples]\ndays = 5\n").expect("valid").samples;
        assert!(!off.is_on() && off.days == 5);
        let on =
            of("[samples]\nmax_mib = 64\npull_kib_s = 8\npull_mib_day = 0\nnormal_per_day = 48\naround_windows = 2\n");
        let on = on.expect("valid").samples;
        assert_eq!((on.max_bytes, on.pull_bytes_s, on.pull_bytes_day), (64 << 20, 8192, 0));
        assert_eq!((on.normal_per_day, on.around, on.days), (48, 2, limits::SAMPLES_DAYS));
    }

    #[test]
    fn wrong_samples_keys_are_refused_with_line_key_and_the_nearest_spelling() {
        let problems = of("[samples]\nmax_mb = 64\ndays = 0\naround = 3\n").expect_err("wrong").join("\n");
        assert!(problems.contains("2: samples.max_mb") && problems.contains("`max_mib`"), "{problems}");
        assert!(problems.contains("3: samples.days: 0 is not within 1 to 3650"), "{problems}");
        assert!(problems.contains("4: samples.around"), "{problems}");
    }

    #[test]
    fn check_explains_how_many_windows_fit_and_what_normal_running_takes() {
        let samples = Samples { max_bytes: 1 << 20, ..Samples::default() };
        let small = samples.of_pipeline("p", 64 * 6 * 4);
        assert_eq!(
            small,
            [
                "samples: pipeline p: 4 KiB a window, 256 fit; normal running adds 720 in 30 days, an alarm 17",
                "samples: pipeline p: its normal running alone needs 3 MiB; the oldest leave before 30 days are over"
            ]
        );
        let large = Samples { max_bytes: 64 << 20, ..samples }.of_pipeline("p", 4096 * 3 * 4);
        assert_eq!(
            large,
            ["samples: pipeline p: 52 KiB a window, 1260 fit; normal running adds 720 in 30 days, an alarm 17"]
        );
        let lines = of("[samples]\nmax_mib = 8\n").expect("valid").samples_explained();
        assert_eq!(lines, ["samples: 8 MiB at most, 30 days; fetched with 16 KiB/s, 16 MiB a day"]);
        assert_eq!(of("").expect("valid").samples_explained(), Vec::<String>::new());
    }
}
