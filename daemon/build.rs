//! Writes down when this binary was built: no clock that is right can be earlier (the "clock floor").

fn main() {
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo::rerun-if-changed=build.rs");
    let built_s = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|text| text.parse::<u64>().ok())
        .or_else(|| {
            let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since_1970.ok().map(|d| d.as_secs())
        })
        .unwrap_or(0);
    println!("cargo::rustc-env=KENTLEDGE_BUILT_S={built_s}");
}
