//! Whether the disk hangs, as the kernel shows it: a thread of this process, of a stage or of a library, that sleeps without
//! being interruptible, look after look, in one and the same sleep. It is how the kernel waits for a disk.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
};

use crate::limits;

/// Threads in such a sleep: the sleep's number, and how many looks in a row it was seen.
#[derive(Debug, Default)]
pub struct Sleepers(BTreeMap<i32, (u64, u32)>);

impl Sleepers {
    /// Looks at all threads. Returns for how many looks the longest of these sleeps has lasted; 0: no thread sleeps so.
    pub fn look(&mut self) -> u32 {
        let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        // All of it comes with one read; read as text of unknown length it would be ten, for each thread, every second.
        let mut text = [0; limits::THREAD_STATUS_BYTES];
        let status = |entry: fs::DirEntry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let n = File::open(entry.path().join("status")).ok()?.read(&mut text).ok()?;
            Some((id, sleep(str::from_utf8(&text[..n]).ok()?)?))
        };
        self.seen(threads.filter_map(status).collect())
    }

    /// All stages make progress.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    fn seen(&mut self, now: Vec<(i32, u64)>) -> u32 {
        let before = std::mem::take(&mut self.0);
        for (id, sleep) in now {
            let looks = before.get(&id).filter(|(same, _)| *same == sleep).map_or(0, |(_, looks)| *looks);
            self.0.insert(id, (sleep, looks.saturating_add(1)));
        }
        self.0.values().map(|(_, looks)| *looks).max().unwrap_or(0)
    }
}

/// The number of a thread's sleep, where it is one that cannot be interrupted (proc_pid_status(5)).
fn sleep(status: &str) -> Option<u64> {
    let value = |key: &str| Some(status.lines().find_map(|line| line.strip_prefix(key))?.trim());
    value("State:")?.starts_with('D').then(|| value("voluntary_ctxt_switches:")?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_long_sleep_is_a_disk_that_hangs_and_many_short_ones_are_not() {
        let status = |state: &str, n: u64| format!("Name:\tx\nState:\t{state}\nvoluntary_ctxt_switches:\t{n}\n");
        assert_eq!(sleep(&status("D (disk sleep)", 7)), Some(7));
        assert_eq!(sleep(&status("S (sleeping)", 7)), None);
        let mut sleepers = Sleepers::default();
        assert_eq!((0..3).map(|n| sleepers.seen(vec![(1, n), (2, n)])).collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!((0..3).map(|n| sleepers.seen(vec![(1, n), (2, 9)])).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(sleepers.seen(vec![]), 0);
    }
}
