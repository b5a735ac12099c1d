//! A stored message is read or refused, whatever lies on the disk; also where an attacker made the checksum fit.
#![no_main]

use kentledge::outbox::Sealed;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Sealed::from_bytes(data);
    if let Ok((place, sealed)) = Sealed::from_bytes(&Sealed::frame(7, data)) {
        assert_eq!(place, 7);
        assert!(!sealed.items.is_empty());
        let again = Sealed::frame(8, &sealed.pack().expect("what was read can be written"));
        assert_eq!(Sealed::from_bytes(&again), Ok((8, sealed)));
    }
});
