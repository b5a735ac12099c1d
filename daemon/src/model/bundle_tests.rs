//! Attacks on bundles and keys, with signatures by the real minisign (tests/run installs it) and rsign2 (a recorded one).

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{
    bundle::{Bundle, pack},
    error::BundleError,
    file::hex,
    keyset::{Keyset, Role},
    shelf::Device,
    slot::{Held, SlotStep},
    store::Store,
};

/// A signer with a minisign key.
struct Signer(TempDir);

impl Signer {
    fn new() -> Self {
        let signer = Self(TempDir::new().expect("folder"));
        let mut minisign = Command::new("minisign");
        minisign
            .args(["-G", "-f", "-W", "-p"])
            .arg(signer.0.path().join("pub"))
            .arg("-s")
            .arg(signer.0.path().join("sec"));
        let made = minisign.stdin(Stdio::null()).stdout(Stdio::null()).status();
        assert!(made.expect("minisign is installed (tests/run installs it)").success());
        signer
    }

    fn public(&self) -> String {
        let text = fs::read_to_string(self.0.path().join("pub")).expect("key");
        text.lines().nth(1).expect("a key").to_owned()
    }

    fn sign(&self, bytes: &[u8]) -> String {
        self.sign_as("manifest.json", bytes, "-S")
    }

    /// Signs the bytes in a file of this name; `how`: `-S`, or `-Sl` for the old kind of signature.
    fn sign_as(&self, name: &str, bytes: &[u8], how: &str) -> String {
        let (file, sig) = (self.0.path().join(name), self.0.path().join("sig"));
        fs::write(&file, bytes).expect("write");
        let mut minisign = Command::new("minisign");
        minisign.args([how, "-q", "-m"]).arg(&file).arg("-x").arg(&sig).arg("-s").arg(self.0.path().join("sec"));
        assert!(minisign.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("minisign").success());
        fs::read_to_string(sig).expect("signature")
    }
}

fn keys(version: u64, signers: &[(&Signer, &[&str])], more: Value) -> Vec<u8> {
    let keys: Vec<Value> = (signers.iter().enumerate())
        .map(|(i, (signer, roles))| json!({"name": format!("k{i}"), "public": signer.public(), "roles": roles}))
        .collect();
    let mut keyset =
        json!({"_type": "kentledge.keyset", "version": version, "expires": "2036-01-01T00:00:00Z", "keys": keys});
    for (key, value) in more.as_object().into_iter().flatten() {
        keyset[key] = value.clone();
    }
    keyset.to_string().into_bytes()
}

fn keyset(signers: &[(&Signer, &[&str])], more: Value) -> Keyset {
    Keyset::parse(&keys(1, signers, more)).expect("keyset")
}

const GOLDEN: &str = "{\"inputs\":{\"x\":[1]},\"outputs\":{\"score\":[1]}}\n";

/// score = Relu(x): the smallest whole ONNX file that the scan passes.
fn onnx(tag: &str) -> Vec<u8> {
    let field = |number: u8, body: &[u8]| [&[number << 3 | 2, body.len() as u8], body].concat();
    let node = [field(1, b"x"), field(2, tag.as_bytes()), field(4, b"Relu")].concat();
    [field(7, &field(1, &node)), field(8, &[0x10, 18])].concat()
}

/// A folder with a signed model `m` of this sequence; `edit` changes the manifest before it is signed.
fn folder(signers: &[&Signer], seq: u64, tag: &str, edit: impl FnOnce(&mut Value)) -> TempDir {
    let dir = TempDir::new().expect("folder");
    let mut entries = Vec::new();
    for (name, bytes) in [("model.onnx", onnx(tag)), ("golden.jsonl", GOLDEN.into()), ("card.md", b"# m\n".to_vec())] {
        fs::write(dir.path().join(name), &bytes).expect("write");
        entries.push(json!({"name": name, "size": bytes.len(), "sha256": hex(&Sha256::digest(&bytes))}));
    }
    let mut manifest = json!({
        "_type": "model", "product": "kentledge", "channel": "stable", "model": "m", "version": "1.0.0", "seq": seq,
        "created": "2026-01-01T00:00:00Z", "expires": "2036-01-01T00:00:00Z", "device_class": ["any"],
        "min_supervisor": "0.1.0", "files": entries, "inputs": [{"name": "x", "type": "float32", "shape": [1]}],
        "outputs": [{"name": "score", "type": "float32", "shape": [1]}], "window": {"channels": ["a"], "length": 1},
    });
    edit(&mut manifest);
    fs::write(dir.path().join("manifest.json"), manifest.to_string()).expect("write");
    for (i, signer) in signers.iter().enumerate() {
        let name = if i == 0 { "manifest.json.minisig".to_owned() } else { format!("manifest.json.k{i}.minisig") };
        fs::write(dir.path().join(name), signer.sign(manifest.to_string().as_bytes())).expect("write");
    }
    dir
}

fn packed(folder: &TempDir) -> PathBuf {
    let out = folder.path().join("m.kmb");
    pack(folder.path(), &out).expect("pack");
    out
}

fn open(path: &Path, keys: &Keyset) -> Result<Bundle, BundleError> {
    Bundle::open(&File::open(path).expect("open"), Some(keys))
}

fn open_bytes(bytes: &[u8], keys: &Keyset) -> Result<Bundle, BundleError> {
    let mut file = tempfile::tempfile().expect("file");
    file.write_all(bytes).expect("write");
    Bundle::open(&file, Some(keys))
}

#[test]
fn whatever_byte_of_a_bundle_is_flipped_it_is_refused() {
    let maker = Signer::new();
    let keys = keyset(&[(&maker, &["model"])], json!({}));
    let bytes = fs::read(packed(&folder(&[&maker], 1, "score", |_| {}))).expect("bundle");
    let good = open_bytes(&bytes, &keys).expect("the bundle itself");
    assert_eq!(good.sha256, hex(&Sha256::digest(&bytes)));
    for at in 0..bytes.len() {
        for mask in [0x01, 0x20, 0x80] {
            let mut flipped = bytes.clone();
            flipped[at] ^= mask;
            assert!(open_bytes(&flipped, &keys).is_err(), "byte {at} ({} of its block) with {mask:#x}", at % 512);
        }
    }
    for len in 0..bytes.len() {
        assert!(open_bytes(&bytes[..len], &keys).is_err(), "cut at {len}");
    }
}

#[test]
fn bundle_head_that_pack_would_not_write_is_refused_though_its_checksum_is_right() {
    type Edit = fn(&mut tar::Header);
    let edits: [(&str, Edit); 8] = [
        ("mode", |head| head.set_mode(0o755)),
        ("owner", |head| head.set_uid(1000)),
        ("group", |head| head.set_gid(1000)),
        ("time", |head| head.set_mtime(1_700_000_000)),
        ("type", |head| head.set_entry_type(tar::EntryType::Regular)),
        ("user name", |head| drop(head.set_username("root"))),
        ("link name", |head| drop(head.set_link_name("/etc/passwd"))),
        ("padding", |head| head.as_mut_bytes()[511] = b'x'),
    ];
    let maker = Signer::new();
    let keys = keyset(&[(&maker, &["model"])], json!({}));
    let bytes = fs::read(packed(&folder(&[&maker], 1, "score", |_| {}))).expect("bundle");
    for (what, edit) in edits {
        let mut other = bytes.clone();
        let head = tar::Header::from_byte_slice(&bytes[..512]).clone();
        let mut changed = head.clone();
        edit(&mut changed);
        changed.set_cksum();
        assert_ne!(changed.as_bytes(), head.as_bytes(), "{what}");
        other[..512].copy_from_slice(changed.as_bytes());
        let why = open_bytes(&other, &keys).expect_err(what);
        assert!(why.to_string().contains("not what `kentledge model pack` writes"), "{what}: {why}");
    }
    // The padding of a tar's last record, as other tools write it.
    let why = open_bytes(&[&bytes[..], &[0; 8192]].concat(), &keys).expect_err("a longer end");
    assert!(why.to_string().contains("data follows its end"), "{why}");
}

#[test]
fn bundle_other_than_the_asked_one_is_refused_before_it_is_parsed() {
    let mut file = tempfile::tempfile().expect("file");
    file.write_all(b"not a tar").expect("write");
    let why = Bundle::open_asked(&file, "00", None).expect_err("refused");
    assert!(why.to_string().contains("sha256") && why.to_string().contains("00 was asked for"), "{why}");
    // Without an expected digest the error says what the file is.
    let why = Bundle::open(&file, None).expect_err("refused");
    assert!(why.to_string().contains("it is a text file") && why.to_string().contains("kentledge model pack"), "{why}");
    let mut model = tempfile::tempfile().expect("file");
    model.write_all(&[&[8, 8][..], &onnx("score")].concat()).expect("write");
    let why = Bundle::open(&model, None).expect_err("refused");
    assert!(why.to_string().contains("it is an ONNX model"), "{why}");
    let why = pack(Path::new("/proc/self/cmdline"), Path::new("/nowhere")).expect_err("refused");
    assert!(why.to_string().contains("expected a folder with manifest.json"), "{why}");
}

#[test]
fn signatures_of_rsign_count_as_those_of_minisign() {
    // Made once with rsign2 0.6 over the text below; the secret key is gone.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/bundles/rsign");
    let public = fs::read_to_string(folder.join("rsign.pub")).expect("key");
    let public = public.lines().nth(1).expect("a key").to_owned();
    let text = json!({"_type": "kentledge.keyset", "version": 1, "expires": "2036-01-01T00:00:00Z",
                      "keys": [{"name": "rsign", "public": public, "roles": ["model"]}]});
    let keys = Keyset::parse(text.to_string().as_bytes()).expect("keyset");
    let bundle = open(&folder.join("m-1.0.0.kmb"), &keys).expect("a bundle signed with rsign");
    assert_eq!(bundle.signed_by, ["rsign"]);
}

#[test]
fn nobody_elses_signature_counts_and_no_key_counts_for_another_role_or_twice() {
    let (maker, other, second) = (Signer::new(), Signer::new(), Signer::new());
    let folder_of_one = folder(&[&maker], 1, "score", |_| {});
    let bundle = packed(&folder_of_one);
    let why = |keys: &Keyset| open(&bundle, keys).expect_err("refused");
    assert!(why(&keyset(&[(&other, &["model"])], json!({}))).to_string().contains("no key of this device"));
    assert!(why(&keyset(&[(&maker, &["command"])], json!({}))).to_string().contains("may not sign"));
    assert!(why(&keyset(&[(&maker, &["model"])], json!({"revoked": [maker.public()]}))).to_string().contains("no key"));
    // The threshold is two: one signer is not enough, and one key that signs twice counts once, under any name.
    let two = keyset(&[(&maker, &["model"]), (&second, &["model"])], json!({"threshold": {"model": 2}}));
    assert!(why(&two).to_string().contains("1 of 2"));
    assert!(
        open(&packed(&folder(&[&maker, &maker], 1, "score", |_| {})), &two)
            .is_err_and(|why| why.to_string().contains("twice"))
    );
    assert!(open(&packed(&folder(&[&maker, &second], 1, "score", |_| {})), &two).is_ok());
}

#[test]
fn signature_that_does_not_count_is_rejected_with_what_is_wrong_with_it() {
    let (maker, other) = (Signer::new(), Signer::new());
    let keys = keyset(&[(&maker, &["model", "command"])], json!({"revoked": [other.public()]}));
    let text = b"{\"model\":\"m\"}";
    let why = |role: Role, signed: &[u8], minisig: &str| {
        keys.signers(role, signed, &[minisig.to_owned()]).expect_err("no").to_string()
    };
    #[track_caller]
    fn says(why: &str, words: &[&str]) {
        words.iter().for_each(|word| assert!(why.contains(word), "{word}: {why}"));
    }
    let good = maker.sign(text);
    assert_eq!(keys.signers(Role::Model, text, std::slice::from_ref(&good)), Ok(vec!["k0"]));
    let legacy = maker.sign_as("manifest.json", text, "-Sl");
    says(&why(Role::Model, text, &legacy), &["key `k0` signed, but without prehashing (minisign -l)", "without -l"]);
    let changed = &[text, &b" "[..]].concat();
    for minisig in [&good, &legacy] {
        says(&why(Role::Model, changed, minisig), &["key `k0` signed something else: manifest.json was changed after"]);
    }
    says(
        &why(Role::Model, text, &maker.sign_as("keyset.json", b"{}", "-S")),
        &["signed something else", "file keyset.json"],
    );
    says(
        &why(Role::Command, text, &maker.sign_as("inner", b"{}", "-S")),
        &["signed something else", "inner", "changed"],
    );
    let comment = good.replace("file:manifest.json", "file:manifest.jsom");
    says(&why(Role::Model, text, &comment), &["key `k0` signed, but", "trusted comment was changed"]);
    says(&why(Role::Model, text, &other.sign(text)), &["no key of this device", "is revoked"]);
    says(&why(Role::Model, text, &Signer::new().sign(text)), &["no key of this device", "unknown key ID "]);
    says(&why(Role::Model, text, "nothing"), &["cannot be read"]);
    // What stands in a comment is shown as one line.
    let lines = maker.sign_as("a\u{1b}[2Jb", b"x", "-S");
    assert!(!why(Role::Command, text, &lines).chars().any(char::is_control));
}

/// A tar of these entries, in this order.
fn tar_of(entries: &[(&str, tar::EntryType, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, bytes) in entries {
        let mut header = tar::Header::new_ustar();
        if *kind != tar::EntryType::Regular {
            header.set_entry_type(*kind);
        }
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        // The library rejects such names, so the header is written by hand.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        if *kind == tar::EntryType::Symlink {
            header.set_link_name("/etc/passwd").expect("link");
        }
        header.set_cksum();
        tar.append(&header, bytes.as_slice()).expect("append");
    }
    tar.into_inner().expect("tar")
}

#[test]
fn foreign_parts_crossed_parts_and_parts_in_another_order_are_refused() {
    use tar::EntryType::{Regular, Symlink};
    let maker = Signer::new();
    let keys = keyset(&[(&maker, &["model"])], json!({}));
    let read = |folder: &TempDir, name: &str| fs::read(folder.path().join(name)).expect("read");
    let (one, two) = (folder(&[&maker], 1, "score", |_| {}), folder(&[&maker], 2, "other", |_| {}));
    let entries = |from: &TempDir| -> Vec<(&'static str, tar::EntryType, Vec<u8>)> {
        ["manifest.json", "manifest.json.minisig", "model.onnx", "golden.jsonl", "card.md"]
            .map(|name| (name, Regular, read(from, name)))
            .to_vec()
    };
    assert!(open_bytes(&tar_of(&entries(&one)), &keys).is_ok());
    let refused = |entries: Vec<(&str, tar::EntryType, Vec<u8>)>, word: &str| {
        let why = open_bytes(&tar_of(&entries), &keys).expect_err(word);
        assert!(why.to_string().contains(word), "{word}: {why}");
    };
    for (name, kind, word) in [
        ("plugin.so", Regular, "not among"),
        ("../escape", Regular, "no plain file"),
        ("/etc/passwd", Regular, "no plain file"),
        ("weights.bin", Symlink, "no plain file"),
    ] {
        refused([entries(&one), vec![(name, kind, Vec::new())]].concat(), word);
    }
    // Two valid bundles crossed: the manifest of one, a file or the signature of the other.
    for at in [1, 2] {
        let mut crossed = entries(&one);
        crossed[at] = entries(&two)[at].clone();
        refused(crossed, if at == 1 { "key `k0` signed something else" } else { "sha256" });
    }
    let mut twice = entries(&one);
    twice.insert(3, twice[2].clone());
    refused(twice, "one file too many");
    let mut swapped = entries(&one);
    swapped.swap(2, 3);
    refused(swapped, "is to come next");
    refused(entries(&one)[1..].to_vec(), "first file");
    refused(entries(&one).into_iter().enumerate().filter(|(i, _)| *i != 1).map(|(_, e)| e).collect(), "0 of 1");
    // File names in the manifest that a bundle does not allow.
    let library = folder(&[&maker], 1, "score", |manifest| {
        let entry = json!({"name": "ops.so", "size": 0, "sha256": hex(&Sha256::digest(b""))});
        manifest["files"].as_array_mut().expect("files").push(entry);
    });
    refused([entries(&library), vec![("ops.so", Regular, Vec::new())]].concat(), "nothing else");
    // Data after the end of the tar.
    let mut longer = tar_of(&entries(&one));
    longer.extend_from_slice(&[7; 512]);
    assert!(open_bytes(&longer, &keys).is_err());
}

#[test]
fn a_manifest_that_says_anything_is_read_or_refused() {
    let maker = Signer::new();
    let seed = fs::read(folder(&[&maker], 1, "score", |_| {}).path().join("manifest.json")).expect("manifest");
    for _ in 0..20_000 {
        let mut bytes = seed.clone();
        for _ in 0..fastrand::usize(1..6) {
            let at = fastrand::usize(0..bytes.len().max(1));
            match fastrand::u8(0..4) {
                _ if bytes.is_empty() => bytes.push(b'{'),
                0 => bytes[at] = fastrand::u8(..),
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"{}[]\",:0-9\\"[fastrand::usize(0..11)]),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let _ = super::manifest::Release::parse(&bytes);
        let _ = super::manifest::Manifest::parse(&bytes);
        let _ = Keyset::parse(&bytes);
        let _ = super::golden::read(&bytes);
    }
}

/// The next keyset, with the signatures of these.
fn follows(version: u64, signers: &[(&Signer, &[&str])], more: Value, by: &[&Signer]) -> (Vec<u8>, Vec<String>) {
    let bytes = keys(version, signers, more);
    let minisigs = by.iter().map(|signer| signer.sign(&bytes)).collect();
    (bytes, minisigs)
}

#[test]
fn a_keyset_follows_only_with_enough_keys_of_both_and_without_a_gap() {
    let (a, b, c) = (Signer::new(), Signer::new(), Signer::new());
    let both = json!({"threshold": {"keyset": 2}});
    let now = keyset(&[(&a, &["keyset"]), (&b, &["keyset"])], both.clone());
    let next = |version, by: &[&Signer]| {
        let (bytes, minisigs) = follows(version, &[(&b, &["keyset"]), (&c, &["keyset"])], both.clone(), by);
        now.successor(&bytes, &minisigs)
    };
    assert!(next(2, &[&a, &b, &c]).is_ok());
    assert!(next(2, &[&a, &b]).is_err_and(|why| why.to_string().contains("by itself")), "one of two of its own");
    assert!(next(2, &[&b, &c]).is_err_and(|why| why.to_string().contains("in use")), "one of two of ours");
    assert!(
        next(2, &[&a, &a, &c])
            .is_err_and(|why| why.to_string().contains("twice") || why.to_string().contains("in use"))
    );
    assert!(next(3, &[&a, &b, &c]).is_err_and(|why| why.to_string().contains("does not follow")), "a skipped version");
    assert!(next(1, &[&a, &b, &c]).is_err_and(|why| why.to_string().contains("does not follow")));
}

#[test]
fn after_a_stolen_key_pushed_the_sequence_up_its_revocation_brings_it_down() {
    let (root, stolen, fresh) = (Signer::new(), Signer::new(), Signer::new());
    let dir = TempDir::new().expect("folder");
    let base = dir.path().join("keyset.json");
    fs::write(&base, keys(1, &[(&root, &["keyset"]), (&stolen, &["model"])], json!({}))).expect("write");
    let (mut store, _) = Store::open(dir.path());
    let device = Device {
        class: String::new(),
        channel: "stable".into(),
        now_ms: 1_790_000_000_000,
        version: semver::Version::new(0, 1, 0),
    };
    let now = store.disk.keyset(&mut store.shelf, &base).expect("keyset").0;
    let admit = |store: &Store, keys: &Keyset, signer: &Signer, seq: u64| {
        let bundle = packed_in(&folder(&[signer], seq, "score", |_| {}), keys)?;
        store.shelf.admit((&bundle.sha256, &bundle.release), &device, keys.expires_ms, 12)
    };
    assert!(
        admit(&store, &now, &stolen, u64::MAX).is_err_and(|why| why.to_string().contains("more than")),
        "a jump is capped"
    );
    let high = 12 + crate::limits::MODEL_SEQ_JUMP;
    assert_eq!(admit(&store, &now, &stolen, high), Ok(()));
    // It passed its trial: its slot holds the sequence, and so does the file.
    let mut line = store.shelf.line("m");
    let id = line.stage(Held { sha256: "x".into(), version: "9".into(), seq: high });
    for step in [SlotStep::Verified, SlotStep::Proven, SlotStep::Trial, SlotStep::Steady] {
        line.step(id, step).expect("step");
    }
    store.change("m", line).expect("change");
    store.raise("m", high).expect("raise");
    assert!(admit(&store, &now, &stolen, 13).is_err_and(|why| why.to_string().contains("not above")));

    let (bytes, minisigs) = follows(
        2,
        &[(&root, &["keyset"]), (&fresh, &["model"])],
        json!({"revoked": [stolen.public()], "min_seq": {"m": 12}}),
        &[&root],
    );
    let expired_ms = 2_100_000_000_000;
    let late = store.disk.take_keyset(&mut store.shelf, &now, (&bytes, &minisigs), expired_ms);
    let late = late.expect_err("a keyset that expired");
    assert!(late.to_string().contains("keyset 2 expired at 2036-01-01"), "{late}");
    let next = store.disk.take_keyset(&mut store.shelf, &now, (&bytes, &minisigs), device.now_ms).expect("rotation");
    assert_eq!(admit(&store, &next, &fresh, 13), Ok(()));
    assert!(admit(&store, &next, &fresh, 11).is_err(), "down to min_seq and no further");
    assert!(admit(&store, &next, &stolen, 14).is_err_and(|why| why.to_string().contains("no key")));
    // The chain is found again. A restored old keyset, or a gap in the chain, is detected.
    let (mut store, _) = Store::open(dir.path());
    assert!(
        store.disk.keyset(&mut store.shelf, &base).is_ok_and(|(keys, trouble)| keys.version == 2 && trouble.is_none())
    );
    fs::remove_file(dir.path().join("keys/2.json")).expect("remove");
    assert!(
        store.disk.keyset(&mut store.shelf, &base).is_ok_and(|(keys, trouble)| keys.version == 1 && trouble.is_some())
    );
    fs::write(dir.path().join("keys/2.json"), b"{}").expect("write");
    assert!(
        store
            .disk
            .keyset(&mut store.shelf, &base)
            .is_ok_and(|(_, trouble)| trouble.is_some_and(|why| why.contains("keyset 2")))
    );
    let _ = now.signer(Role::Keyset, b"", "");
}

fn packed_in(folder: &TempDir, keys: &Keyset) -> Result<Bundle, BundleError> {
    open(&packed(folder), keys)
}

/// Makes each write of a rotation fail once: the files written before it are what a power cut there leaves.
#[test]
fn keyset_rotation_cut_at_any_write_leaves_the_old_keyset_or_a_device_that_installs_with_the_new_one() {
    let (root, stolen, fresh) = (Signer::new(), Signer::new(), Signer::new());
    let device = Device {
        class: String::new(),
        channel: "stable".into(),
        now_ms: 1_790_000_000_000,
        version: semver::Version::new(0, 1, 0),
    };
    let high = 12 + crate::limits::MODEL_SEQ_JUMP;
    let (bytes, minisigs) = follows(
        2,
        &[(&root, &["keyset"]), (&fresh, &["model"])],
        json!({"revoked": [stolen.public()], "min_seq": {"m": 12}}),
        &[&root],
    );
    let (new, old) = (folder(&[&fresh], 13, "score", |_| {}), folder(&[&fresh], 11, "score", |_| {}));
    let writes = [
        "keys/2.0.minisig",
        "keys/2.json",
        "models/slots.json.bak",
        "models/slots.json",
        "models/high.json.bak",
        "models/high.json",
    ];
    let mut versions = Vec::new();
    for cut in writes.iter().map(Some).chain([None]) {
        let dir = TempDir::new().expect("folder");
        let base = dir.path().join("keyset.json");
        fs::write(&base, keys(1, &[(&root, &["keyset"]), (&stolen, &["model"])], json!({}))).expect("write");
        let (mut store, _) = Store::open(dir.path());
        let now = store.disk.keyset(&mut store.shelf, &base).expect("keyset").0;
        let mut line = store.shelf.line("m");
        let id = line.stage(Held { sha256: "x".into(), version: "9".into(), seq: high });
        for step in [SlotStep::Verified, SlotStep::Proven, SlotStep::Trial, SlotStep::Steady] {
            line.step(id, step).expect("step");
        }
        store.change("m", line).expect("change");
        store.raise("m", high).expect("raise");
        let obstacle = cut.map(|name| dir.path().join(format!("{name}.new")));
        obstacle.iter().for_each(|path| fs::create_dir(path).expect("obstacle"));
        let _ = store.disk.take_keyset(&mut store.shelf, &now, (&bytes, &minisigs), device.now_ms);
        drop(store);
        obstacle.iter().for_each(|path| fs::remove_dir(path).expect("obstacle"));

        let (mut store, _) = Store::open(dir.path());
        let (mut now, trouble) = store.disk.keyset(&mut store.shelf, &base).expect("keyset");
        assert_eq!(trouble, None, "cut at {cut:?}");
        versions.push(now.version);
        if now.version == 1 {
            assert_eq!(
                store.shelf.high("m", 12),
                high,
                "cut at {cut:?}: nothing is lowered by a keyset that does not count"
            );
            now = store
                .disk
                .take_keyset(&mut store.shelf, &now, (&bytes, &minisigs), device.now_ms)
                .expect("it is sent again");
        }
        let bundle = packed_in(&new, &now).expect("bundle");
        assert_eq!(
            store.shelf.admit((&bundle.sha256, &bundle.release), &device, now.expires_ms, 12),
            Ok(()),
            "cut at {cut:?}"
        );
        let older = packed_in(&old, &now).expect("bundle");
        assert!(
            store.shelf.admit((&older.sha256, &older.release), &device, now.expires_ms, 12).is_err(),
            "cut at {cut:?}"
        );
        // The next start does not lower again what is installed from here on.
        store.raise("m", 20).expect("raise");
        drop(store);
        let (mut store, _) = Store::open(dir.path());
        store.disk.keyset(&mut store.shelf, &base).expect("keyset");
        assert_eq!(store.shelf.high("m", 12), 20, "cut at {cut:?}");
    }
    assert_eq!(versions, [1, 1, 2, 2, 2, 2, 2]);
}
