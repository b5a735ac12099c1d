//! A marker on disk before a risky act. A process that finds it knows that the act was begun and did not end: the process
//! was killed during it, or the power failed.

use std::io;

use super::Keep;

/// One act that was begun.
#[derive(Debug)]
pub struct Attempt {
    keep: Keep,
    name: String,
}

impl Attempt {
    /// Marks the beginning. Returns how many times in a row it was begun before without coming to an end.
    ///
    /// # Errors
    /// The disk is not writable.
    pub fn begin(keep: &Keep, act: &str) -> io::Result<(Self, u32)> {
        let name = format!("{act}.attempt");
        // A marker that cannot be read, or makes no sense, is a marker.
        let before: u32 = match keep.load(&name) {
            Ok(None) => 0,
            Ok(Some(bytes)) => std::str::from_utf8(&bytes).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(1),
            Err(_) => 1,
        };
        keep.save(&name, format!("{}\n", before.saturating_add(1)).as_bytes())?;
        Ok((Self { keep: keep.clone(), name }, before))
    }

    /// It came to an end, good or bad.
    ///
    /// # Errors
    /// The disk is not writable.
    pub fn ended(self) -> io::Result<()> {
        self.keep.remove(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_came_to_an_end_is_counted() {
        let dir = tempfile::tempdir().expect("folder");
        let keep = Keep::at(dir.path().join("k"));
        for expected in 0..3 {
            let (_, before) = Attempt::begin(&keep, "store").expect("begin");
            assert_eq!(before, expected);
        }
        let (attempt, _) = Attempt::begin(&keep, "store").expect("begin");
        attempt.ended().expect("end");
        assert_eq!(Attempt::begin(&keep, "store").expect("begin").1, 0);
    }
}
