//! Sorts what goes wrong with the store: an error of the disk or of the process that may pass, or damage of the store
//! itself. Only damage sets a store aside. Also catches the panics of the database, which unwraps some errors of the disk.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};

use nix::errno::Errno;

/// Why a store could not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unopened {
    /// The disk or the process does not let it: full, read-only, I/O errors, no descriptor left. The store may be whole.
    Disk(String),
    /// The store itself.
    Damaged(String),
}

/// Why a message could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unread {
    /// The disk, or sled after it met a failure of the disk: the message may be whole.
    Disk(String),
    /// The message itself.
    Damaged(String),
}

/// Whether an error says nothing about the content of a file. What the kernel reports passes, except for errors about
/// names: a file that is missing or of another kind stays so. What has no number was found in the content.
pub fn passes(why: &io::Error) -> bool {
    match why.raw_os_error() {
        Some(number) => number_passes(number),
        None => text_passes(&why.to_string()),
    }
}

fn number_passes(number: i32) -> bool {
    let names = [Errno::ENOENT, Errno::ENOTDIR, Errno::EISDIR, Errno::ELOOP, Errno::ENAMETOOLONG];
    !names.contains(&Errno::from_raw(number))
}

/// The same for an error that sled has copied or unwrapped: its number is left in the text alone, as `Os { code: 5, ` or
/// `(os error 5)`.
pub fn text_passes(text: &str) -> bool {
    // A lock that is not given is no damage: another process or thread holds the file.
    number(text).is_some_and(number_passes)
        || text.contains("could not acquire lock")
        || text.contains("IO thread unexpectedly panicked")
}

/// The disk, or this user's share of it, is full.
pub fn is_full(text: &str) -> bool {
    number(text).is_some_and(|number| [Errno::ENOSPC, Errno::EDQUOT].contains(&Errno::from_raw(number)))
}

/// The medium itself failed.
pub fn is_of_medium(text: &str) -> bool {
    number(text).is_some_and(|number| Errno::from_raw(number) == Errno::EIO)
}

fn number(text: &str) -> Option<i32> {
    let after = |mark: &str| {
        let rest = text.split_once(mark)?.1;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    ["Os { code: ", "(os error "].into_iter().find_map(after)
}

/// Sorts an error that came with an operation.
pub fn unopened(what: &str, why: &io::Error) -> Unopened {
    let text = format!("{what}: {why}");
    if passes(why) { Unopened::Disk(text) } else { Unopened::Damaged(text) }
}

/// Does something with the database; a panic of it is an error.
///
/// # Errors
/// The text of the panic, or the error itself.
pub fn guarded<T>(act: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|payload| Err(panicked(payload.as_ref())))
}

/// What a panic of the database said.
pub fn panicked(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no text");
    format!("the database panicked: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_errors_pass_and_damage_does_not_also_after_sled_copied_them() {
        for errno in
            [Errno::EIO, Errno::EMFILE, Errno::ENFILE, Errno::ENOSPC, Errno::EROFS, Errno::EDQUOT, Errno::EACCES]
        {
            let why = io::Error::from(errno);
            assert!(passes(&why), "{why}");
            // How sled clones an error, and how a panic over one reads.
            assert!(passes(&io::Error::other(format!("{why:?}"))), "{why:?}");
            let failed = || -> Result<(), _> { Err(sled_like(io::Error::from(errno))) };
            let unwrapped = catch_unwind(|| failed().unwrap());
            assert!(text_passes(&panicked(unwrapped.expect_err("a panic").as_ref())), "{errno}");
        }
        for text in ["Corruption { at: None }", "called `Option::unwrap()` on a `None` value", "failed to fill buffer"]
        {
            assert!(!text_passes(text), "{text}");
        }
        assert!(!passes(&io::Error::from(Errno::ENOENT)) && !passes(&io::Error::from(io::ErrorKind::UnexpectedEof)));
    }

    fn sled_like(why: io::Error) -> String {
        format!("Io({why:?})")
    }
}
