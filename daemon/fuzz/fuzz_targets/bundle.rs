//! Whatever a bundle's parts say, they are read or refused.
#![no_main]

use kentledge::model::{
    baseline::Baseline,
    golden,
    keyset::Keyset,
    manifest::{Manifest, Release},
    scan,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Release::parse(data);
    let _ = Manifest::parse(data);
    let _ = Keyset::parse(data);
    let _ = golden::read(data);
    let _ = Baseline::parse(data);
    let _ = scan::scan(data);
});
