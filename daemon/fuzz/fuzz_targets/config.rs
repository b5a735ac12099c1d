//! Any text is a configuration or a list of problems, each with its place.
#![no_main]

use std::{io::Write, sync::Mutex};

use kentledge::config::Config;
use libfuzzer_sys::fuzz_target;
use tempfile::NamedTempFile;

static FILE: Mutex<Option<NamedTempFile>> = Mutex::new(None);

fuzz_target!(|text: &str| {
    let mut file = FILE.lock().expect("one at a time");
    let file = file.get_or_insert_with(|| NamedTempFile::with_suffix(".toml").expect("file"));
    file.as_file().set_len(0).expect("cut");
    std::fs::write(file.path(), text).and_then(|()| file.flush()).expect("write");
    if let Err(problems) = Config::load(Some(file.path())) {
        assert!(!problems.is_empty());
    }
});
