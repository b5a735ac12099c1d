//! What a sample and a window cost on their way through the daemon, in instructions and in calls of `malloc`, against committed numbers:
//! a test that fails when the road gets longer.

use std::process::Command;

use super::road_tests::{Counted, Shape, WIDTH, counted};

/// What a row of eight channels cost, and what a window of 64 rows cost beside its row at hop 1, to the acknowledged message.
const COST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/system/cost.json");

/// The counts may be so much higher. Other processors take other ways through memchr and memcpy: 2 %.
const TOLERANCE: f64 = 0.05;

/// Name and version: another one makes other instructions of the same source.
fn compiler() -> String {
    let rustc = Command::new("rustc").arg("--version").output().expect("rustc");
    String::from_utf8_lossy(&rustc.stdout).split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[expect(clippy::print_stdout, reason = "what they cost is a result")]
#[test]
fn row_and_window_cost_no_more_instructions_and_allocations_than_they_did() {
    let shape = |hop| Shape { ports: 1, channels: WIDTH, models: 1, hop, rows: 400 };
    let (row, both) = (counted(shape(0)), counted(shape(1)));
    let window = (both.instructions - row.instructions, both.mallocs - row.mallocs);
    for (what, Counted { instructions, stages, mallocs }) in [("a row", &row), ("a row and its window", &both)] {
        let stages: Vec<String> = stages.iter().map(|(name, n)| format!("{name} {n:.0}")).collect();
        println!("MEASURED: {what}: {instructions:.0} instructions ({}), {mallocs:.2} allocations", stages.join(", "));
    }
    let known: serde_json::Value = serde_json::from_slice(&std::fs::read(COST).expect("read")).expect("JSON");
    let compiler = compiler();
    if !cfg!(target_arch = "x86_64") || known["compiler"] != compiler.as_str() {
        println!("SKIPPED: the counts are of {} on x86-64, and this is {compiler}: not compared", known["compiler"]);
        return;
    }
    for (what, (instructions, mallocs)) in [("row", (row.instructions, row.mallocs)), ("window", window)] {
        let number = |member: &str| known[what][member].as_f64().expect("a number");
        let (before, mallocs_before) = (number("instructions"), number("allocations"));
        assert!(
            instructions <= before * (1.0 + TOLERANCE) && mallocs <= mallocs_before + 0.1,
            "a {what} costs {instructions:.0} instructions and {mallocs:.2} allocations, and cost {before} and {mallocs_before}: find \
             what was added to the road. If it is worth it, write it into {COST}"
        );
        assert!(
            instructions >= before * (1.0 - 2.0 * TOLERANCE),
            "a {what} costs {instructions:.0} instructions, and cost {before}: write the new number into {COST}, so that it is kept"
        );
    }
}
