//! Whatever a stored message holds, its envelope is JSON as long as its bodies are members.
#![no_main]

use kentledge::outbox::Sealed;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok((_, mut sealed)) = Sealed::from_bytes(&Sealed::frame(7, data)) else { return };
    sealed.items.iter_mut().for_each(|item| item.body = "\"a\":1".into());
    (sealed.lineage, sealed.boot) = (None, "b".into());
    let envelope: serde_json::Value = serde_json::from_str(&sealed.envelope(true)).expect("an envelope");
    assert_eq!(envelope["data"].as_array().map(Vec::len), Some(sealed.items.len()));
});
