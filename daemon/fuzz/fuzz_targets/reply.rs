//! Whatever a worker answers, it is rejected or within bounds, and its texts fit a log line.
#![no_main]

use kentledge::{
    infer::channel::{Layout, Loaded, Prepared, Ready, understand},
    limits,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(loaded) = understand::<Loaded>(data) {
        let texts = loaded.placement.iter().map(|placed| &placed.provider).chain([&loaded.runtime, &loaded.sandbox]);
        texts.for_each(|text| assert!(!text.contains(char::is_control)));
        // Together with the largest window this does not wrap.
        let values = |shape: &[i64]| shape.iter().map(|d| (*d).max(1)).product::<i64>();
        loaded.inputs.iter().for_each(|tensor| assert!(values(&tensor.shape) <= limits::TENSOR_VALUES_MAX));
        let _ = loaded.placement.iter().map(|placed| placed.nodes).sum::<usize>();
    }
    if let Ok(prepared) = understand::<Prepared>(data)
        && let Ok(layout) = Layout::plan(&[8], &prepared.outputs, limits::SLOTS_MAX, limits::SHARED_BYTES)
    {
        assert!(layout.bytes() <= limits::SHARED_BYTES);
    }
    let _ = understand::<Ready>(data);
});
