//! Who this device is, where nobody told it: the board's serial number, else a name that is made once and kept. Never the
//! machine-id: an image that was booted before it was copied gives the same one to many.

use std::{io, path::Path};

use super::{Keep, nonce};

const FILE: &str = "device-id";

/// Where boards say their serial number.
const SERIALS: [&str; 2] = ["/proc/device-tree/serial-number", "/sys/firmware/devicetree/base/serial-number"];

/// A topic segment that names this device, the same after each start.
pub fn device_id(state_dir: &Path) -> io::Result<String> {
    let keep = Keep::open(state_dir, "identity")?;
    let kept = keep.load(FILE).and_then(|bytes| String::from_utf8(bytes).ok()).and_then(|text| segment(&text));
    if let Some(kept) = kept {
        return Ok(kept);
    }
    let serial = SERIALS.iter().find_map(|path| segment(&std::fs::read_to_string(path).ok()?));
    let id = serial.unwrap_or_else(|| format!("kl-{}", &nonce()[..12]));
    keep.save(FILE, id.as_bytes())?;
    tracing::info!(id, "this device has named itself");
    Ok(id)
}

/// What of a serial number can stand in a topic; `None`: it is none, or that of every board (all zeroes).
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
        let ids = dirs.each_ref().map(|dir| device_id(dir.path()).expect("id"));
        assert_eq!(device_id(dirs[0].path()).expect("id"), ids[0]);
        assert!(ids[0] != ids[1] || SERIALS.iter().any(|path| Path::new(path).exists()));
        assert_eq!(segment("10000000ABCD1234\0").as_deref(), Some("10000000abcd1234"));
        assert_eq!((segment("0000000000000000"), segment(" \n"), segment("#+/")), (None, None, None));
    }
}
