//! Plays the same on the disk of the stories and on the real one, and compares.

use serde_json::json;

use super::*;
use crate::{
    control::{
        memory::MemoryFile,
        trial::{Asker, Trials},
        world::World,
    },
    flow::order::Respond,
    host::Keep,
    model::{
        shelf::{Brings, End, Ended, InstallJob, Stage},
        slot::{Held, SlotStep},
        store::Store,
    },
};

#[test]
fn disk_of_the_stories_is_what_the_real_disk_holds_after_the_same_actions() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let dir = tempfile::tempdir().expect("folder");
        let (trials, memory) = (Trials::open(dir.path()), MemoryFile(Keep::at(dir.path().join("control"))));
        let mut disk = Disk::default();
        for step in 0..20 {
            let text = |random: &mut fastrand::Rng| random.bool().then(|| format!("a = {}", random.u8(0..3)));
            let trial = Trial {
                asker: Asker::Desired(step),
                previous: text(&mut random),
                text: text(&mut random),
                digest: String::new(),
                confirm_s: None,
                process: "mine".into(),
                put_back: None,
                respond: Some(Respond { topic: "t".into(), correlation: Some(b"c".to_vec().into()) }),
            };
            match random.u8(0..6) {
                0 => {
                    trials.begin(&trial).expect("begin");
                    disk.begin(&trial);
                }
                1 => {
                    trials.keep(&trial).expect("keep");
                    disk.forget();
                }
                2 => {
                    trials.put_back(&trial, "bad").expect("put back");
                    disk.put_back(&trial, "bad");
                }
                3 => {
                    trials.end().expect("end");
                    disk.forget();
                }
                4 => {
                    let process = if random.bool() { "mine" } else { "another" };
                    trials.recover(process).expect("recover");
                    disk.recover(process);
                }
                _ => {
                    let mut world = World::new();
                    world.order(world.command(("log.pull", "a"), Some(("ops", step + 1)), &json!({})));
                    let saved = world.disk.memory.expect("saved");
                    memory.save(&saved).expect("save");
                    disk.memory = Some(saved);
                }
            }
            assert_eq!((trials.current(), trials.found()), (Ok(disk.layer.clone()), Ok(disk.trial.clone())), "{seed}");
            let json = |saved: Option<Saved>| saved.map(|saved| serde_json::to_string(&saved).expect("JSON"));
            assert_eq!(json(memory.load().expect("read")), json(disk.memory.clone()), "{seed}");
        }
    }
}

fn shelf(random: &mut fastrand::Rng, shelf: &mut Shelf, sha256: &str) {
    match random.u8(0..5) {
        0 => {
            let stage = Stage::Bringing(Brings::Chunks);
            shelf.set_job(Some(InstallJob {
                command: "c".into(),
                respond: None,
                sha256: sha256.into(),
                size: 1,
                stage,
            }));
        }
        1 => shelf.set_job(None),
        2 => {
            let mut line = shelf.line("m");
            let id = line.stage(Held { sha256: sha256.into(), version: "1".into(), seq: 1 });
            for step in [SlotStep::Verified, SlotStep::Proven, SlotStep::Trial, SlotStep::Steady] {
                line.step(id, step).expect("step");
            }
            shelf.set_line("m", line);
        }
        3 => shelf.end(Ended { command: "c".into(), end: End::Success, text: String::new(), respond: None }),
        _ => shelf.failed(sha256, "bad"),
    }
}

#[test]
fn files_of_the_stories_are_what_the_real_disk_holds_after_the_same_actions() {
    let digests: Vec<String> = ["a", "b", "c"].map(|letter| letter.repeat(64)).into();
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let dir = tempfile::tempdir().expect("folder");
        let (Store { disk, shelf: mut known }, _) = Store::open(dir.path());
        let mut files = Files::default();
        for _ in 0..20 {
            let sha256 = &digests[random.usize(0..digests.len())];
            match random.u8(0..8) {
                0 => {
                    shelf(&mut random, &mut known, sha256);
                    let saved = known.to_save().expect("readable");
                    disk.save(&saved).expect("save");
                    files.saved = Some(saved);
                }
                1 => {
                    known.raise("m", random.u64(0..9));
                    let high = known.high_to_save().expect("readable");
                    disk.save_high(&high).expect("save");
                    files.high = Some(high);
                }
                2 => {
                    disk.append(sha256, b"xy").expect("append");
                    files.append(sha256, b"xy");
                }
                3 => assert_eq!(disk.take_in(sha256).is_ok(), files.take_in(sha256).is_ok(), "seed {seed}"),
                4 => {
                    disk.remove_incoming(sha256);
                    files.remove_incoming(sha256);
                }
                5 => {
                    let keep = &digests[..random.usize(0..digests.len())];
                    disk.sweep(keep, Some(sha256));
                    files.sweep(keep, Some(sha256));
                }
                6 => {
                    std::fs::write(disk.copy(), b"xyz").expect("copy");
                    files.copy = Some(3);
                }
                _ => assert_eq!(disk.take_copy(sha256).is_ok(), files.take_copy(sha256).is_ok(), "seed {seed}"),
            }
            for sha256 in &digests {
                assert_eq!(disk.find(sha256), files.find(sha256), "seed {seed}");
            }
        }
        let (read, written) = (Store::open(dir.path()).0.shelf, files.shelf());
        assert_eq!((read.saved(), read.high_to_save()), (written.saved(), written.high_to_save()), "seed {seed}");
    }
}
