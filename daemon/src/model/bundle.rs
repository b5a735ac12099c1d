//! A bundle, `NAME-VERSION.kmb`: a plain tar with the manifest, its signatures, and the files it names, in this order and
//! nothing else. The manifest is trusted only after its signature is verified, and a file only after its digest.
//!
//! ```text
//! manifest.json │ manifest.json.minisig │ manifest.json.KEY.minisig … │ model.onnx │ model.int8.onnx … │ golden.jsonl
//!               │ baseline.json │ card.md            (after the signatures: what manifest.json's `files` lists, as it lists it)
//! ```
//!
//! A bundle has no room for unsigned data: the tar's headers and gaps are byte for byte as `pack` writes them. The one line of
//! a signature that the signature does not cover holds the default text of minisign or rsign (`pack` sets it).

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use sha2::{Digest, Sha256};

use super::{
    baseline::Baseline,
    error::BundleError,
    file::{ModelFile, hex},
    golden::{self, Case},
    keyset::{Keyset, Role},
    manifest::{FileEntry, Manifest, Release},
};
use crate::{
    host::{Defence, looks},
    limits,
};

const MANIFEST: &str = "manifest.json";
const BLOCK: u64 = 512;
/// The allowed unsigned lines of a signature.
const UNTRUSTED: [&str; 2] =
    ["untrusted comment: signature from minisign secret key", "untrusted comment: signature from rsign secret key"];

/// The manifest of a bundle, with verified signatures. The files behind it have not been read.
#[derive(Debug, Clone)]
pub struct Head {
    /// How to run it.
    pub manifest: Manifest,
    /// Whether it may be installed.
    pub release: Release,
    /// The names of the keys that signed it; empty if the signatures were not checked.
    pub signed_by: Vec<String>,
    /// SHA-256 of manifest.json, hex. It names the digests of all other files.
    pub sha256: String,
}

/// A bundle with verified signatures, digests and files.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// How to run it.
    pub manifest: Manifest,
    /// Whether it may be installed.
    pub release: Release,
    /// The names of the keys that signed it; empty if the signatures were not checked.
    pub signed_by: Vec<String>,
    /// SHA-256 of the whole file, hex: its name in the store.
    pub sha256: String,
    /// SHA-256 of its manifest.json, hex.
    pub manifest_sha256: String,
    /// The ONNX files, by name.
    pub models: BTreeMap<String, ModelFile>,
    /// Golden cases.
    pub golden: Vec<Case>,
    /// Baseline of its inputs, if it has one.
    pub baseline: Option<Baseline>,
}

impl Head {
    /// Reads the manifest and its signatures: a few KiB, however large the bundle is. Without a keyset signatures are not
    /// verified.
    ///
    /// # Errors
    ///
    /// Why the bundle is rejected.
    pub fn read(file: &File, keys: Option<&Keyset>) -> Result<Self, BundleError> {
        Ok(Self::of(file, &parts(file, size_of(file)?)?, keys)?.0)
    }

    /// The same of a bundle whose parts are known; and how many of them it takes.
    fn of(file: &File, parts: &[Part], keys: Option<&Keyset>) -> Result<(Self, usize), BundleError> {
        let head = parts.first().filter(|part| part.name == MANIFEST).ok_or("its first file is not manifest.json")?;
        let manifest = head.small(file, limits::MANIFEST_BYTES_MAX)?;
        let mut minisigs = Vec::new();
        for part in parts[1..].iter().take_while(|part| is_signature(&part.name)) {
            let text = String::from_utf8(part.small(file, limits::MINISIG_BYTES_MAX)?);
            let text = text.map_err(|_| BundleError(format!("{} is not text", part.name)))?;
            canonical(&text).map_err(|why| BundleError(format!("{}: {why}", part.name)))?;
            minisigs.push(text);
        }
        let signed_by = match keys {
            Some(keys) => keys
                .signers(Role::Model, &manifest, &minisigs)
                .map_err(|why| BundleError(format!("manifest.json: {why}")))?,
            None => Vec::new(),
        };
        // The manifest is trusted only from here on.
        let head = Self {
            signed_by: signed_by.into_iter().map(str::to_owned).collect(),
            sha256: hex(&Sha256::digest(&manifest)),
            release: Release::parse(&manifest)?,
            manifest: Manifest::parse(&manifest).map_err(|why| BundleError(format!("manifest.json: {why}")))?,
        };
        Ok((head, 1 + minisigs.len()))
    }
}

impl Bundle {
    /// Reads and checks a whole bundle. Without a keyset (`pack` checks its own result) signatures are not verified.
    ///
    /// # Errors
    ///
    /// Why the bundle is rejected.
    pub fn open(file: &File, keys: Option<&Keyset>) -> Result<Self, BundleError> {
        let sha256 = digest(file)?;
        Self::read(file, sha256, keys)
    }

    /// Like `open`, with the expected digest: nothing of another bundle is parsed.
    ///
    /// # Errors
    ///
    /// Why the bundle is rejected.
    pub fn open_asked(file: &File, asked: &str, keys: Option<&Keyset>) -> Result<Self, BundleError> {
        match digest(file)? {
            sha256 if sha256 == asked => Self::read(file, sha256, keys),
            sha256 => Err(BundleError(format!("its sha256 is {sha256}, and {asked} was asked for"))),
        }
    }

    fn read(file: &File, sha256: String, keys: Option<&Keyset>) -> Result<Self, BundleError> {
        let parts = parts(file, size_of(file)?)?;
        let (head, taken) = Head::of(file, &parts, keys)?;
        let Head { manifest, release, signed_by, sha256: manifest_sha256 } = head;
        let mut parts = parts.iter().skip(taken);
        let mut next = parts.next();
        let mut bundle = Self {
            manifest,
            release,
            signed_by,
            sha256,
            manifest_sha256,
            models: BTreeMap::new(),
            golden: Vec::new(),
            baseline: None,
        };
        for entry in bundle.release.files.clone() {
            let part = next.filter(|part| part.name == entry.name).ok_or_else(|| {
                let found = next.map_or("its end", |part| &part.name);
                format!("`{}` is to come next, and {found} comes", entry.name)
            })?;
            bundle.take(file, part, &entry).map_err(|why| BundleError(format!("{}: {why}", entry.name)))?;
            next = parts.next();
        }
        if let Some(part) = next {
            return Err(BundleError(format!("`{}` is not among the manifest's files", part.name)));
        }
        if bundle.golden.is_empty() {
            return Err("it has no golden.jsonl: what it must answer is not said".into());
        }
        Ok(bundle)
    }

    /// Reads one file that the manifest names.
    fn take(&mut self, file: &File, part: &Part, entry: &FileEntry) -> Result<(), BundleError> {
        if part.size != entry.size {
            return Err(BundleError(format!("{} bytes, and the manifest says {}", part.size, entry.size)));
        }
        let wrong =
            |sha256: &str| BundleError(format!("its sha256 is {sha256}, and the manifest says {}", entry.sha256));
        if entry.name.ends_with(".onnx") {
            // Check the digest before the scan, and scan the same memory that the worker gets.
            let found = part.digest(file)?;
            if found != entry.sha256 {
                return Err(wrong(&found));
            }
            let model = ModelFile::take(&mut part.reader(file)?)?;
            if model.sha256 != entry.sha256 {
                return Err(wrong(&model.sha256));
            }
            self.models.insert(entry.name.clone(), model);
            return Ok(());
        }
        let bytes = part.small(file, limits::BUNDLE_TEXT_BYTES_MAX)?;
        let found = hex(&Sha256::digest(&bytes));
        if found != entry.sha256 {
            return Err(wrong(&found));
        }
        match entry.name.as_str() {
            "golden.jsonl" => self.golden = golden::read(&bytes)?,
            "baseline.json" => self.baseline = Some(Baseline::parse(&bytes)?),
            "card.md" => {}
            _ => {
                return Err(
                    "a bundle has .onnx files, golden.jsonl, baseline.json and card.md, and nothing else".into()
                );
            }
        }
        Ok(())
    }

    /// The ONNX file for a provider.
    pub fn model_for(&self, provider: &str) -> Option<&ModelFile> {
        self.models.get(self.manifest.file_for(provider))
    }
}

fn size_of(file: &File) -> Result<u64, BundleError> {
    match file.metadata().map_err(|why| BundleError(why.to_string()))?.len() {
        size if size > limits::BUNDLE_BYTES_MAX => {
            Err(BundleError(format!("{size} bytes are more than {}", limits::BUNDLE_BYTES_MAX)))
        }
        size => Ok(size),
    }
}

/// SHA-256 of a whole file, hex.
///
/// # Errors
///
/// The file is larger than a bundle may be, or cannot be read.
pub fn digest(file: &File) -> Result<String, BundleError> {
    size_of(file)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 64 * 1024];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at).map_err(|why| BundleError(why.to_string()))? {
            0 => return Ok(hex(&hash.finalize())),
            n => {
                hash.update(&buffer[..n]);
                at += n as u64;
            }
        }
    }
}

fn is_signature(name: &str) -> bool {
    name.strip_prefix(MANIFEST).is_some_and(|rest| rest.starts_with('.') && rest.ends_with(".minisig"))
}

/// Rejects a signature file with text that the signature does not cover, apart from the default comment.
fn canonical(text: &str) -> Result<(), BundleError> {
    let lines: Vec<&str> = text.split('\n').collect();
    let [untrusted, signature, trusted, global, ""] = lines[..] else {
        return Err("it is not the four lines that minisign writes".into());
    };
    if !UNTRUSTED.contains(&untrusted) || !trusted.starts_with("trusted comment: ") {
        return Err("its unsigned comment is not the default of minisign or rsign; `pack` restores it".into());
    }
    for (base64, bytes) in [(signature, 74), (global, 64)] {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let decoded = STANDARD.decode(base64).map_err(|why| BundleError(why.to_string()))?;
        if decoded.len() != bytes || STANDARD.encode(decoded) != base64 {
            return Err("it is no signature of minisign".into());
        }
    }
    Ok(())
}

/// Position of a file in the tar.
#[derive(Debug, Clone)]
struct Part {
    name: String,
    at: u64,
    size: u64,
}

impl Part {
    fn small(&self, file: &File, most: u64) -> Result<Vec<u8>, BundleError> {
        if self.size > most {
            return Err(BundleError(format!("{}: {} bytes are more than {most}", self.name, self.size)));
        }
        let mut bytes = vec![0; self.size as usize];
        file.read_exact_at(&mut bytes, self.at).map_err(|why| BundleError(format!("{}: {why}", self.name)))?;
        Ok(bytes)
    }

    fn reader(&self, file: &File) -> Result<impl Read, BundleError> {
        let mut file = file.try_clone().map_err(|why| BundleError(why.to_string()))?;
        file.seek(SeekFrom::Start(self.at)).map_err(|why| BundleError(why.to_string()))?;
        Ok(file.take(self.size))
    }

    fn digest(&self, file: &File) -> Result<String, BundleError> {
        let mut hash = Sha256::new();
        std::io::copy(&mut self.reader(file)?, &mut HashWriter(&mut hash))
            .map_err(|why| BundleError(why.to_string()))?;
        Ok(hex(&hash.finalize()))
    }
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Lists every file of the tar. Headers must be byte for byte as `pack` writes them (no links, no folders, no owners, no
/// times), with zeroes between the files and two empty blocks at the end.
fn parts(file: &File, size: u64) -> Result<Vec<Part>, BundleError> {
    is_tar(file)?;
    let (mut parts, mut at) = (Vec::<Part>::new(), 0);
    loop {
        let mut block = [0u8; BLOCK as usize];
        file.read_exact_at(&mut block, at).map_err(|why| BundleError(format!("it is no whole tar: {why}")))?;
        if block.iter().all(|byte| *byte == 0) {
            zeroes(file, at, at + 2 * BLOCK)?;
            return if size == at + 2 * BLOCK { Ok(parts) } else { Err("data follows its end".into()) };
        }
        let part = part(&block, at + BLOCK)?;
        if parts.len() == limits::BUNDLE_FILES_MAX || parts.iter().any(|known| known.name == part.name) {
            return Err(BundleError(format!("`{}` is one file too many", part.name)));
        }
        let ends =
            part.at.checked_add(part.size).filter(|ends| *ends <= size).ok_or("it ends in the middle of a file")?;
        at = ends.next_multiple_of(BLOCK);
        zeroes(file, ends, at)?;
        parts.push(part);
    }
}

/// Checks that the file begins as a bundle does.
///
/// # Errors
///
/// The error says what the file is, what is expected, and which command makes it.
pub fn is_tar(file: &File) -> Result<(), BundleError> {
    let mut block = Vec::new();
    let mut reader = file.try_clone().map_err(|why| BundleError(why.to_string()))?;
    reader
        .seek(SeekFrom::Start(0))
        .and_then(|_| reader.take(BLOCK).read_to_end(&mut block))
        .map_err(|why| BundleError(why.to_string()))?;
    if block.get(257..262) == Some(b"ustar") {
        return Ok(());
    }
    Err(BundleError(format!(
        "it is {}; expected a signed bundle (.kmb): make one with `kentledge model prepare DIR`, `minisign -Sm \
         DIR/manifest.json`, `kentledge model pack DIR -o FILE.kmb`",
        looks::like(&block)
    )))
}

/// Parses a header, if it is exactly as `pack` would write it.
fn part(block: &[u8; BLOCK as usize], at: u64) -> Result<Part, BundleError> {
    let head = tar::Header::from_byte_slice(block);
    let name = block[..100].split(|byte| *byte == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(name).into_owned();
    if !matches!(head.entry_type(), tar::EntryType::Regular) || !super::manifest::is_name(&name) {
        return Err(BundleError(format!("`{}` is no plain file", name.escape_default())));
    }
    let size = head.entry_size().map_err(|why| BundleError(format!("it is no whole tar: {why}")))?;
    if header(&name, size)?.as_bytes() != block && Defence::TarHeader.stands() {
        return Err(BundleError(format!("the tar header of `{name}` is not what `kentledge model pack` writes")));
    }
    Ok(Part { name, at, size })
}

/// The header of a file, in the only accepted form.
fn header(name: &str, size: u64) -> Result<tar::Header, BundleError> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).map_err(|why| BundleError(format!("{name}: {why}")))?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}

fn zeroes(file: &File, from: u64, to: u64) -> Result<(), BundleError> {
    let mut gap = vec![0; to.saturating_sub(from) as usize];
    file.read_exact_at(&mut gap, from).map_err(|why| BundleError(format!("it is no whole tar: {why}")))?;
    if gap.iter().any(|byte| *byte != 0) { Err("there is something between its files".into()) } else { Ok(()) }
}

/// Checks that the path is a folder.
///
/// # Errors
///
/// The path is not a folder; the error says what it is.
pub fn is_folder(path: &Path) -> Result<(), BundleError> {
    if path.is_dir() {
        return Ok(());
    }
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(BLOCK).read_to_end(&mut head))
        .map_err(|why| BundleError(why.to_string()))?;
    Err(BundleError(format!("it is {}; expected a folder with manifest.json and model.onnx", looks::like(&head))))
}

/// Packs a folder: the manifest, its signatures, and the files it names. Checks the result as a device would.
///
/// # Errors
/// A file is missing or unreadable, the manifest is not signed, or a device would reject the result.
pub fn pack(folder: &Path, out: &Path) -> Result<Bundle, BundleError> {
    is_folder(folder)?;
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).map_err(|why| BundleError(format!("read {}: {why}", path.display())))
    };
    let manifest = read(MANIFEST)?;
    let release = Release::parse(&manifest)?;
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .map_err(|why| BundleError(format!("read {}: {why}", folder.display())))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_signature(name))
        .collect();
    names.sort_by_key(|name| (name.len() > "manifest.json.minisig".len(), name.clone()));
    if names.is_empty() {
        return Err(BundleError(format!(
            "{}: sign it first: minisign -Sm manifest.json",
            folder.join(MANIFEST).display()
        )));
    }
    let mut files = vec![(MANIFEST.to_owned(), manifest)];
    for name in names {
        let text = String::from_utf8(read(&name)?).map_err(|_| BundleError(format!("{name} is not text")))?;
        let rest = text.split_once('\n').map(|(_, rest)| rest.replace('\r', "")).unwrap_or_default();
        files.push((name, format!("{}\n{}\n", UNTRUSTED[0], rest.trim_end_matches('\n')).into_bytes()));
    }
    for entry in &release.files {
        files.push((entry.name.clone(), read(&entry.name)?));
    }
    let what = |why: std::io::Error| BundleError(format!("write {}: {why}", out.display()));
    let fresh = out.with_extension("kmb.new");
    let mut tar = tar::Builder::new(File::create(&fresh).map_err(what)?);
    for (name, bytes) in files {
        tar.append(&header(&name, bytes.len() as u64)?, bytes.as_slice()).map_err(what)?;
    }
    tar.into_inner().and_then(|file| file.sync_all()).map_err(what)?;
    let looked = File::open(&fresh).map_err(what).and_then(|file| Bundle::open(&file, None));
    let bundle = looked.inspect_err(|_| drop(std::fs::remove_file(&fresh)))?;
    std::fs::rename(&fresh, out).map_err(what)?;
    Ok(bundle)
}
