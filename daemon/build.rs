//! Writes down when this binary was built: no clock that is right can be earlier (the "clock floor"). Links the released one with
//! packed relocations.

use std::{env, process::Command};

fn main() {
    if relocations_can_be_packed() {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo::rerun-if-changed=build.rs");
    let built_s = env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|text| text.parse::<u64>().ok())
        .or_else(|| {
            let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since_1970.ok().map(|d| d.as_secs())
        })
        .unwrap_or(0);
    println!("cargo::rustc-env=KENTLEDGE_BUILT_S={built_s}");
}

/// The loader's list of addresses as bits, 0.28 MB less: glibc reads that from 2.36 on. A system with an older one, which runs what
/// it builds, and a cross compiler, which does not say what it builds for, go without.
fn relocations_can_be_packed() -> bool {
    let is = |key: &str, wanted: &str| env::var(key).is_ok_and(|value| value == wanted);
    let target = "x86_64-unknown-linux-gnu";
    if !is("PROFILE", "release") || !is("TARGET", target) || !is("HOST", target) {
        return false;
    }
    let said = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut numbers = said.trim().trim_start_matches("glibc ").split('.').map_while(|part| part.parse::<u32>().ok());
    numbers.next().zip(numbers.next()).is_some_and(|version| version >= (2, 36))
}
