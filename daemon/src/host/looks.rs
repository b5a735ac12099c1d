//! What a file looks like, by its first bytes: for the error when it is not what a command needs. Pure.

/// The first 6 bytes of a tape (`source/tape.rs`).
const TAPE: &[u8; 6] = b"KLTAPE";

/// With its article: `an ONNX model`.
pub fn like(head: &[u8]) -> &'static str {
    let starts = |with: &[u8]| head.starts_with(with);
    match head {
        [] => "an empty file",
        _ if head.get(257..262) == Some(b"ustar") => "a tar or a bundle",
        _ if starts(TAPE) => "a tape",
        _ if starts(b"\x7fELF") => "a program or a library",
        _ if starts(b"\x1f\x8b") => "a gzip archive",
        _ if starts(b"PK\x03\x04") => "a zip archive",
        _ if starts(b"hsqs") => "a squashfs image (a system bundle is one)",
        _ if starts(b"-----BEGIN") => "a PEM file (a key or a certificate)",
        _ if starts(b"untrusted comment:") => "a key or a signature of minisign",
        // ir_version, the first field that every exporter writes.
        [8, 1..=32, ..] => "an ONNX model",
        _ => match std::str::from_utf8(head).map_err(|why| why.error_len()) {
            // It may be cut within a letter.
            Ok(_) | Err(None) if head.iter().all(|byte| *byte >= 32 || b"\t\r\n".contains(byte)) => {
                match head.iter().find(|byte| !byte.is_ascii_whitespace()) {
                    Some(b'{') => "a JSON file",
                    Some(b'[') => "a TOML or JSON file",
                    _ => "a text file",
                }
            }
            _ => "a file of an unknown kind",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_by_their_first_bytes() {
        for (head, word) in [
            (&b""[..], "empty"),
            (&[8, 8, 0x12, 7], "ONNX"),
            (b"[device]\nsite = \"x\"\n", "TOML"),
            (b"  {\"v\": 1}", "JSON"),
            (b"time,x\n1,2\n", "text"),
            ("grün".as_bytes().split_last().expect("bytes").1, "text"),
            (&[0xff, 0x00, 0x80], "unknown"),
            (b"\x7fELF\x02", "program"),
        ] {
            assert!(like(head).contains(word), "{head:?}: {}", like(head));
        }
    }
}
