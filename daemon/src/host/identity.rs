//! The device id when none is configured: the board's serial number, else a name that is made once and saved. Never the
//! machine-id: copies of an image that was booted before share it.

use std::path::Path;

use super::{Keep, nonce};

const FILE: &str = "device-id";

/// Where boards say their serial number.
const SERIALS: [&str; 2] = ["/proc/device-tree/serial-number", "/sys/firmware/devicetree/base/serial-number"];

/// A topic segment that names this device, the same after each start. Where the name cannot be read or saved, it is that of the
/// board, or one for this start alone, and the log says so: a device that does not start cannot raise an alarm.
pub fn device_id(state_dir: &Path) -> String {
    let keep = Keep::at(state_dir.join("identity"));
    let loaded = keep.load_patiently(FILE);
    let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).ok().and_then(|text| segment(&text));
    if let Some(kept) = loaded.as_ref().ok().and_then(Option::as_ref).and_then(text) {
        return kept;
    }
    let serial = SERIALS.iter().find_map(|path| segment(&std::fs::read_to_string(path).ok()?));
    let id = serial.unwrap_or_else(|| format!("kl-{}", &nonce()[..12]));
    // A name that cannot be read now is not written over: it comes back with the next start.
    match loaded.map(|_| keep.save(FILE, id.as_bytes())) {
        Ok(Ok(())) => tracing::info!(id, "this device has named itself"),
        Ok(Err(why)) => tracing::error!(id, "save the device id: {why}; the next start may choose another id"),
        Err(why) => tracing::error!(id, "read the saved device id: {why}; this id is used until the next start"),
    }
    id
}

/// The part of a serial number that is valid in a topic. `None`: nothing is left, or it is all zeroes as on every board.
fn segment(text: &str) -> Option<String> {
    let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_ascii_lowercase();
    let id: String =
        text.chars().filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-').take(64).collect();
    let id = id.trim_start_matches('-').to_owned();
    (id.len() >= 4 && id.chars().any(|c| c != '0')).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_keeps_its_name_and_two_have_different_ones() {
        let dirs = [tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder")];
        let ids = dirs.each_ref().map(|dir| device_id(dir.path()));
        assert_eq!(device_id(dirs[0].path()), ids[0]);
        assert!(ids[0] != ids[1] || SERIALS.iter().any(|path| Path::new(path).exists()));
        assert_eq!(segment("10000000ABCD1234\0").as_deref(), Some("10000000abcd1234"));
        assert_eq!((segment("0000000000000000"), segment(" \n"), segment("#+/")), (None, None, None));
    }

    #[test]
    fn unreadable_name_is_not_written_over_and_an_unwritable_folder_gives_a_name_all_the_same() {
        let dir = tempfile::tempdir().expect("folder");
        let id = device_id(dir.path());
        let path = dir.path().join("identity").join(FILE);
        crate::host::keep::unreadable::make(&path);
        assert!(!device_id(dir.path()).is_empty());
        crate::host::keep::unreadable::mend(&path);
        assert_eq!(device_id(dir.path()), id);
        assert!(!device_id(Path::new("/proc/self/no-folder-can-be-here")).is_empty());
    }
}
