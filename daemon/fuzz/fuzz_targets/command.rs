//! Whatever arrives is a request or a refusal; what is taken names the topic it came by.
#![no_main]

use kentledge::control::{
    command::TABLE,
    request::{command, desired},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for kind in TABLE.iter().map(|row| row.name) {
        if let Ok(request) = command("s/d", kind, "a", data) {
            assert_eq!((request.kind.as_str(), request.id.as_str()), (kind, "a"));
        }
    }
    let _ = desired("s/d", data);
});
