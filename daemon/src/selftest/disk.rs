//! Measures the medium below a folder: how fast it writes, and how long a commit takes. The file has no name while it is
//! written, so nothing of it remains, whatever happens.

use std::{
    fs::{self, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::Path,
    time::{Duration, Instant},
};

use super::facts::Speed;
use crate::{host, limits};

/// Writes and measures.
///
/// # Errors
/// The folder is not writable, or too little is free; in words.
pub fn measure(folder: &Path, free: u64) -> Result<Speed, String> {
    if free < limits::SELFTEST_FREE {
        return Err(format!("{} MiB are free, {} are needed", free >> 20, limits::SELFTEST_FREE >> 20));
    }
    write(folder).map_err(|why| why.to_string())
}

fn write(folder: &Path) -> io::Result<Speed> {
    let path = folder.join(format!(".selftest.{}", host::nonce()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    let until = Instant::now() + limits::SELFTEST_DISK;
    // Different bytes: some media do not write zeros.
    let block: Vec<u8> = (0..1 << 20).map(|_| fastrand::u8(..)).collect();
    let (began, mut bytes) = (Instant::now(), 0_usize);
    while bytes < limits::SELFTEST_BYTES && Instant::now() < until {
        file.write_all(&block)?;
        file.sync_data()?;
        bytes += block.len();
    }
    let took = began.elapsed().max(Duration::from_micros(1));
    file.seek(SeekFrom::Start(0))?;
    let mut commits = Vec::with_capacity(limits::SELFTEST_COMMITS);
    while commits.len() < limits::SELFTEST_COMMITS && (commits.is_empty() || Instant::now() < until) {
        let began = Instant::now();
        file.write_all(&block[..4096])?;
        file.sync_data()?;
        commits.push(began.elapsed());
    }
    commits.sort();
    Ok(Speed {
        bytes_s: (bytes as f64 / took.as_secs_f64()) as u64,
        commit: commits[commits.len() / 2],
        commit_longest: commits.last().copied().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_leaves_nothing_and_a_full_disk_is_not_written_to() {
        let dir = tempfile::tempdir().expect("folder");
        let speed = measure(dir.path(), 1 << 30).expect("measured");
        assert!(speed.bytes_s > 0 && speed.commit <= speed.commit_longest);
        assert_eq!(fs::read_dir(dir.path()).expect("folder").count(), 0);
        assert!(measure(dir.path(), 1 << 20).expect_err("full").contains("1 MiB are free"));
        assert!(measure(&dir.path().join("none"), 1 << 30).is_err());
    }
}
