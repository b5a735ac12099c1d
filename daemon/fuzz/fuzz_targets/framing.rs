//! Bytes of a port cut into frames: the frames are the same however the bytes are cut into reads, and none is longer
//! than allowed.
#![no_main]

use kentledge::source::framing::Lines;
use libfuzzer_sys::fuzz_target;

const FRAME_MAX: usize = 32;

fn frames<'a>(reads: impl Iterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let mut lines = Lines::new(FRAME_MAX);
    let mut all = Vec::new();
    for read in reads {
        let cut = lines.feed(read);
        all.extend(cut.ranges.iter().map(|&(a, b)| cut.bytes[a as usize..b as usize].to_vec()));
    }
    all
}

fuzz_target!(|data: &[u8]| {
    let Some((size, bytes)) = data.split_first() else { return };
    let whole = frames(std::iter::once(bytes));
    let cut = frames(bytes.chunks(usize::from(*size).max(1)));
    assert_eq!(whole, cut);
    assert!(whole.iter().all(|frame| frame.len() <= FRAME_MAX));
});
