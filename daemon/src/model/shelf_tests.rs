//! Tests of the shelf: which bundle may be installed, and what the file of the job looks like.

use super::*;

fn release(seq: u64) -> Release {
    Release {
        channel: "stable".into(),
        model: "m".into(),
        version: "1".into(),
        seq,
        expires_ms: 2000,
        created_ms: 500,
        device_class: vec!["any".into()],
        min_supervisor: semver::Version::new(0, 1, 0),
        files: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
    }
}

fn device() -> Device {
    Device { class: "pi".into(), channel: "stable".into(), now_ms: 1000, version: semver::Version::new(0, 1, 0) }
}

#[test]
fn what_is_old_expired_or_for_others_is_not_admitted() {
    let try_it = |release: Release, device: Device| admit(&release, &device, 5, false);
    assert_eq!(try_it(release(6), device()), Ok(()));
    for (seq, word) in [(5, "not above 5"), (4, "not above 5"), (u64::MAX, "more than")] {
        assert!(try_it(release(seq), device()).is_err_and(|why| why.to_string().contains(word)), "{seq}");
    }
    assert_eq!(admit(&release(5), &device(), 5, true), Ok(()), "a bundle that a slot holds may be installed again");
    assert!(
        try_it(Release { expires_ms: 1000, ..release(6) }, device())
            .is_err_and(|why| why.to_string().contains("expired"))
    );
    let other = Release { device_class: vec!["jetson".into()], ..release(6) };
    assert!(try_it(other, device()).is_err_and(|why| why.to_string().contains("jetson")));
    let beta = Release { channel: "beta".into(), ..release(6) };
    assert!(try_it(beta, device()).is_err_and(|why| why.to_string().contains("beta")));
    let newer = Release { min_supervisor: semver::Version::new(9, 0, 0), ..release(6) };
    assert!(try_it(newer, device()).is_err_and(|why| why.to_string().contains("9.0.0")));
}

#[test]
fn job_is_read_as_it_was_written_also_one_of_an_older_version() {
    let job = |stage: Stage| InstallJob { command: "c".into(), respond: None, sha256: "x".into(), size: 1, stage };
    let in_slot = Stage::InSlot { model: "m".into(), id: SlotId::B, begun: 2 };
    for stage in [Stage::Bringing(Brings::Https("https://a".into())), Stage::Bringing(Brings::Chunks), in_slot.clone()]
    {
        let text = serde_json::to_string(&job(stage.clone())).expect("write");
        assert_eq!(serde_json::from_str::<InstallJob>(&text).expect("read"), job(stage));
    }
    let older =
        r#"{"command":"c","respond":null,"sha256":"x","size":1,"brings":"chunks","target":["m","b"],"begun":2}"#;
    assert_eq!(serde_json::from_str::<InstallJob>(older).expect("read"), job(in_slot));
    let saved = r#"{"v":1,"lines":{},"failed":[],"job":null}"#;
    assert!(serde_json::from_str::<Saved>(saved).expect("read").ended.is_empty());
}

#[test]
fn jobs_that_ended_are_bounded_and_forgotten_by_their_command() {
    let mut shelf = Shelf::new(None, Vec::new(), None);
    for n in 0..=limits::JOBS_ENDED {
        shelf.end(Ended { command: n.to_string(), end: End::Success, text: String::new(), respond: None });
    }
    assert_eq!(shelf.ended().count(), limits::JOBS_ENDED);
    assert!(!shelf.forget_ended("0"), "the oldest one left");
    assert!(shelf.forget_ended("1") && !shelf.forget_ended("1"));
}

#[test]
fn what_could_not_be_saved_is_undone_but_a_bundle_that_failed_stays_known() {
    let mut shelf = Shelf::new(None, Vec::new(), None);
    let before = shelf.saved().clone();
    let mut line = ModelSlots::default();
    line.stage(Held { sha256: "x".into(), version: "1".into(), seq: 1 });
    shelf.set_line("m", line);
    shelf.failed("x", "bad");
    shelf.undo(before);
    assert_eq!((shelf.line("m"), shelf.why_failed("x")), (ModelSlots::default(), Some("bad")));
}
