//! The bytes of a recording as lines of text: unpacked, decoded to UTF-8, ended by LF, CR LF or CR. Each line has its
//! number, and so has each error.

use std::{
    fs::File,
    io::{Cursor, Read},
    path::Path,
};

use encoding_rs::{DecoderResult, Encoding, UTF_8, UTF_16BE, UTF_16LE};

use crate::{
    error::{Context, Fatal},
    host::looks,
    limits,
};

/// The lines of a file.
pub struct Lines {
    input: Box<dyn Read>,
    decoder: encoding_rs::Decoder,
    encoding: &'static Encoding,
    /// The file's name, for errors.
    file: String,
    chunk: Vec<u8>,
    text: String,
    /// What of `text` was taken.
    at: usize,
    /// Number of the last line that was taken.
    line: u64,
    ended: bool,
    /// The last line ended in CR: a LF that follows belongs to it.
    after_cr: bool,
}

/// `--encoding`: any label of the Encoding Standard, such as `latin1`, `windows-1252`, `utf-16le`, `shift_jis`.
pub fn encoding(label: &str) -> Result<&'static Encoding, String> {
    Encoding::for_label(label.as_bytes()).ok_or_else(|| {
        format!(
            "unknown encoding `{label}`: expected one such as utf-8, utf-16le, windows-1252 (Latin-1), shift_jis or gbk"
        )
    })
}

/// The first bytes, and a reader that begins with them.
fn peek(mut input: Box<dyn Read>) -> std::io::Result<(Vec<u8>, Box<dyn Read>)> {
    let mut head = Vec::new();
    (&mut input).take(limits::RECORDING_HEAD_BYTES as u64).read_to_end(&mut head)?;
    Ok((head.clone(), Box::new(Cursor::new(head).chain(input))))
}

/// UTF-16 by its mark, or by zeros in every other byte; and the length of the mark.
fn sniffed(head: &[u8]) -> (Option<&'static Encoding>, usize) {
    match head {
        [0xef, 0xbb, 0xbf, ..] => return (Some(UTF_8), 3),
        [0xff, 0xfe, ..] => return (Some(UTF_16LE), 2),
        [0xfe, 0xff, ..] => return (Some(UTF_16BE), 2),
        _ => {}
    }
    let zeros = |odd: usize| head.iter().skip(odd).step_by(2).filter(|byte| **byte == 0).count();
    let (even, odd, half) = (zeros(0), zeros(1), head.len() / 2);
    match half {
        0..2 => (None, 0),
        _ if even == 0 && odd * 10 >= half * 8 => (Some(UTF_16LE), 0),
        _ if odd == 0 && even * 10 >= half * 8 => (Some(UTF_16BE), 0),
        _ => (None, 0),
    }
}

/// Zeros in a row in text are no binary file: a logger's card keeps them where the power failed.
const ZEROS: usize = 8;

/// Whether the only strange bytes are rows of zeros within text.
fn is_text_with_zeros(head: &[u8]) -> bool {
    let text = |byte: &u8| *byte >= b' ' || b"\t\r\n".contains(byte);
    let mut zeros = head.chunk_by(|a, b| (*a == 0) == (*b == 0)).filter(|run| run[0] == 0);
    let short = zeros.any(|run| run.len() < ZEROS);
    head.first().is_some_and(text) && head.iter().all(|byte| *byte == 0 || text(byte)) && !short
}

/// Why this is no table of text, if its first bytes show that.
fn refusal(head: &[u8]) -> Option<String> {
    let what = match head {
        [] => "it is empty".into(),
        [b'P', b'K', 3, 4, ..] => "it is a zip archive (an Excel workbook is one): save the sheet as CSV".into(),
        [0xd0, 0xcf, 0x11, 0xe0, ..] => "it is a workbook of old Excel: save the sheet as CSV".into(),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "it is packed by zstd: unpack it first (gzip is read as it is)".into(),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "it is packed by xz: unpack it first (gzip is read as it is)".into(),
        [b'B', b'Z', b'h', ..] => "it is packed by bzip2: unpack it first (gzip is read as it is)".into(),
        [b'P', b'A', b'R', b'1', ..] => "it is a Parquet file: export it as CSV".into(),
        [b'K', b'L', b'T', b'A', b'P', b'E', ..] => {
            "it is a tape: `kentledge replay TAPE --config FILE` plays it".into()
        }
        _ if head.contains(&0) && !is_text_with_zeros(head) => {
            format!("it is no table of text but {}", looks::like(head))
        }
        _ => return None,
    };
    Some(what)
}

impl Lines {
    /// Opens the file. The encoding is the given one, else what its first bytes show, else UTF-8.
    ///
    /// # Errors
    /// Where it cannot be read, or is visibly no text.
    pub fn open(path: &Path, declared: Option<&'static Encoding>) -> Result<Self, Fatal> {
        let what = || format!("read {}", path.display());
        let file = File::open(path).context(what())?;
        let kind = file.metadata().context(what())?.file_type();
        if !kind.is_file() {
            let why = if kind.is_dir() {
                "it is a folder"
            } else {
                "it is no regular file, and is read twice: save it first"
            };
            return Err(Fatal::failed(format!("{}: {why}", what())));
        }
        let (mut head, mut input) = peek(Box::new(file)).context(what())?;
        if head.starts_with(&[0x1f, 0x8b]) {
            (head, input) =
                peek(Box::new(flate2::read::MultiGzDecoder::new(input))).context(format!("{}: unpack gzip", what()))?;
        }
        let (seen, mark) = sniffed(&head);
        let encoding = declared.or(seen);
        if let Some(why) = refusal(&head).filter(|_| encoding.is_none() || head.is_empty()) {
            return Err(Fatal::failed(format!("{}: {why}", what())));
        }
        let encoding = encoding.unwrap_or(UTF_8);
        // A mark of another encoding than the declared one is text, and will look odd.
        if seen == Some(encoding) {
            std::io::copy(&mut (&mut input).take(mark as u64), &mut std::io::sink()).context(what())?;
        }
        Ok(Self {
            input,
            decoder: encoding.new_decoder_without_bom_handling(),
            encoding,
            file: path.display().to_string(),
            chunk: vec![0; limits::RECORDING_READ_BYTES],
            text: String::new(),
            at: 0,
            line: 0,
            ended: false,
            after_cr: false,
        })
    }

    fn bad(&self, line: u64, why: &str) -> Fatal {
        Fatal::failed(format!("{}:{line}: {why}", self.file))
    }

    /// Decodes one chunk more.
    fn fill(&mut self) -> Result<(), Fatal> {
        self.text.drain(..self.at);
        self.at = 0;
        let n = match self.input.read(&mut self.chunk) {
            Ok(n) => n,
            Err(why) if why.kind() == std::io::ErrorKind::Interrupted => return Ok(()),
            Err(why) => return Err(self.bad(self.line + 1, &format!("the file ends or breaks here: {why}"))),
        };
        self.ended = n == 0;
        let (mut from, before) = (0, self.text.len());
        loop {
            let rest = &self.chunk[from..n];
            self.text.reserve(
                self.decoder.max_utf8_buffer_length_without_replacement(rest.len()).unwrap_or(rest.len() * 3 + 8),
            );
            let (result, read) = self.decoder.decode_to_string_without_replacement(rest, &mut self.text, self.ended);
            from += read;
            match result {
                DecoderResult::InputEmpty => {
                    self.shorten_zeros(before);
                    return Ok(());
                }
                DecoderResult::OutputFull => {}
                DecoderResult::Malformed(length, after) => {
                    let end = from.saturating_sub(usize::from(after));
                    let bytes = self.chunk[end.saturating_sub(usize::from(length))..end].to_vec();
                    return Err(self.undecodable(&bytes));
                }
            }
        }
    }

    /// One zero in the place of many: a card's empty blocks are no line of megabytes. `before`: where the new text begins.
    fn shorten_zeros(&mut self, before: usize) {
        if !self.text[before..].contains('\0') {
            return;
        }
        let new = self.text.split_off(before);
        for letter in new.chars() {
            if letter != '\0' || !self.text.ends_with('\0') {
                self.text.push(letter);
            }
        }
    }

    /// Names the line of the bytes after `text`, and the likely encoding.
    fn undecodable(&self, bytes: &[u8]) -> Fatal {
        let before = self.text[self.at..].replace("\r\n", "\n");
        let line = self.line + 1 + before.matches(['\n', '\r']).count() as u64;
        let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        let why = if self.encoding == UTF_8 {
            let (letter, _) = encoding_rs::WINDOWS_1252.decode_without_bom_handling(bytes.get(..1).unwrap_or_default());
            format!(
                "the text is not UTF-8 (byte {hex}): probably Latin-1 or Windows-1252, where it is `{letter}`; if so, say \
                 --encoding windows-1252"
            )
        } else {
            format!("the text is not {} (byte {hex}): name the right --encoding", self.encoding.name())
        };
        self.bad(line, &why)
    }

    /// The next line without its end; `None` after the last.
    ///
    /// # Errors
    /// Where the file cannot be read or unpacked on, where text does not decode, and for a line without an end.
    pub fn next(&mut self) -> Result<Option<String>, Fatal> {
        let mut seen = 0;
        loop {
            let rest = &self.text[self.at..];
            if self.after_cr && !rest.is_empty() {
                self.after_cr = false;
                if rest.starts_with('\n') {
                    self.at += 1;
                    continue;
                }
            }
            if let Some(found) = memchr::memchr2(b'\n', b'\r', &rest.as_bytes()[seen..]) {
                let line = rest[..seen + found].to_owned();
                self.after_cr = rest.as_bytes()[seen + found] == b'\r';
                self.at += seen + found + 1;
                self.line += 1;
                return Ok(Some(line));
            }
            if self.ended {
                if rest.is_empty() {
                    return Ok(None);
                }
                let line = rest.to_owned();
                self.at = self.text.len();
                self.line += 1;
                return Ok(Some(line));
            }
            seen = rest.len();
            if seen > limits::RECORDING_LINE_BYTES {
                let most = limits::RECORDING_LINE_BYTES;
                return Err(
                    self.bad(self.line + 1, &format!("the line has more than {most} bytes: this is no table of text"))
                );
            }
            self.fill()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn lines(bytes: &[u8], label: Option<&str>) -> Result<Vec<String>, String> {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        file.write_all(bytes).expect("write");
        let declared = label.map(|label| encoding(label).expect("label"));
        let mut lines = Lines::open(file.path(), declared).map_err(|why| why.text)?;
        let mut all = Vec::new();
        while let Some(line) = lines.next().map_err(|why| why.text)? {
            all.push(line);
        }
        Ok(all)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(bytes).expect("write");
        packer.finish().expect("finish")
    }

    fn utf16(text: &str, little: bool) -> Vec<u8> {
        text.encode_utf16().flat_map(|unit| if little { unit.to_le_bytes() } else { unit.to_be_bytes() }).collect()
    }

    #[test]
    fn lines_end_with_lf_cr_lf_or_cr_and_the_last_one_needs_no_end() {
        for text in ["a,b\n1,2\n\n3,4", "a,b\r\n1,2\r\n\r\n3,4\r\n", "a,b\r1,2\r\r3,4\r"] {
            assert_eq!(lines(text.as_bytes(), None).expect("text"), ["a,b", "1,2", "", "3,4"], "{text:?}");
        }
        let long = format!("{}\r\nlast", "x".repeat(limits::RECORDING_READ_BYTES - 1));
        assert_eq!(lines(long.as_bytes(), None).expect("CR and LF in two chunks").len(), 2);
    }

    #[test]
    fn encodings_with_and_without_a_mark_and_gzip_give_the_same_text() {
        let text = "Zeit;Öl °C\n1;2\n";
        let marked = |mark: &[u8], bytes: Vec<u8>| [mark.to_vec(), bytes].concat();
        let all = [
            text.as_bytes().to_vec(),
            marked(b"\xef\xbb\xbf", text.as_bytes().to_vec()),
            marked(b"\xff\xfe", utf16(text, true)),
            marked(b"\xfe\xff", utf16(text, false)),
            utf16("t;x\n1;2\n", true).repeat(1),
        ];
        for (i, bytes) in all.iter().enumerate() {
            for bytes in [bytes.clone(), gzip(bytes), [gzip(&bytes[..8]), gzip(&bytes[8..])].concat()] {
                let seen = lines(&bytes, None).expect("text");
                assert_eq!(seen, if i == 4 { ["t;x", "1;2"] } else { ["Zeit;Öl °C", "1;2"] }, "{i}");
            }
        }
        assert_eq!(lines(b"Zeit;\xd6l \xb0C\n1;2\n", Some("latin1")).expect("declared"), ["Zeit;Öl °C", "1;2"]);
    }

    #[test]
    fn zeros_where_the_power_failed_cost_their_rows_alone_and_a_binary_file_is_none() {
        let torn = [&b"t,a\n1,2\n3,"[..], &[0; 70_000], b"\n5,6\n7,8", &[0; 12]].concat();
        assert_eq!(lines(&torn, None).expect("text"), ["t,a", "1,2", "3,\0", "5,6", "7,8\0"]);
        for binary in [&b"t,a\n1\x002\n1,2\n"[..], b"\0\0\0\0\0\0\0\0\0\0t,a", b"ab\x01\0\0\0\0\0\0\0\0\0\0cd"] {
            assert!(lines(binary, None).expect_err("binary").contains("it is no table of text"), "{binary:?}");
        }
    }

    #[test]
    fn undecodable_text_names_its_line_and_the_likely_encoding() {
        let far = "é".repeat(100_000);
        for (text, line) in [
            (b"time;T \xb0C\n1;2\n".to_vec(), 1),
            (b"a;b\r\n1;2\r\n3;\xb0\r\n".to_vec(), 3),
            ([far.as_bytes(), b"\n\n\xb0\n"].concat(), 3),
        ] {
            let why = lines(&text, None).expect_err("Latin-1");
            assert!(why.contains(&format!(":{line}: ")) && why.contains("--encoding windows-1252"), "{why}");
            assert!(why.contains("byte b0") && why.contains("`°`"), "{why}");
        }
    }

    #[test]
    fn what_is_no_table_of_text_is_rejected_in_words() {
        for (bytes, word) in [
            (&b""[..], "empty"),
            (b"PK\x03\x04rest", "Excel"),
            (b"\xd0\xcf\x11\xe0rest", "old Excel"),
            (b"KLTAPE\x02\n", "kentledge replay TAPE"),
            (b"\xfd7zXZ\0", "xz"),
            (b"\x7fELF\x02\x00\x01", "a program"),
            (b"\x1f\x8b\x08", "unpack gzip"),
        ] {
            let why = lines(bytes, None).expect_err("no text");
            assert!(why.starts_with("read ") && why.contains(word), "{why}");
        }
        let torn = gzip("time;x\n".repeat(50_000).as_bytes());
        assert!(lines(&torn[..torn.len() - 9], None).expect_err("torn").contains("ends or breaks here"));
        let endless = "x".repeat(limits::RECORDING_LINE_BYTES + 2 * limits::RECORDING_READ_BYTES);
        assert!(lines(endless.as_bytes(), None).expect_err("endless").contains(":1: the line has more than"));
    }
}
