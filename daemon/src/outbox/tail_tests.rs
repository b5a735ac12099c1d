//! The tail's rules, one by one.

use super::*;
use crate::flow::{Stamp, StreamId};

const S: u64 = 1_000_000_000;

fn tail() -> Tail {
    Tail::new("b", vec!["p/x".into(), "m/y".into(), "a/z".into(), "res/w".into(), "loss".into()], 4, Ledger::default())
}

fn push(tail: &mut Tail, stream: u16, seq: u64, now_ns: u64) {
    let class = [Class::Score, Class::Measurement, Class::Event, Class::Reply, Class::Status][usize::from(stream)];
    let stamp = Stamp { boot_ns: now_ns, wall_ms: None, clk: Clk::Unset };
    let body = bytes::Bytes::from_static(b"\"a\":1");
    let draft = Draft { stream: StreamId(stream), class, stamp, lineage: None, body, retain: Retain::No };
    tail.push(draft, seq, now_ns);
}

fn taken(tail: &mut Tail) -> Vec<(String, u64, u64)> {
    std::iter::from_fn(|| tail.take(true, u64::MAX))
        .map(|t| (t.sealed.stream.clone(), t.sealed.seqs().0, t.sealed.seqs().1))
        .collect()
}

#[test]
fn alarms_go_first_and_what_waits_together_is_one_message() {
    let mut t = tail();
    t.went_online();
    (1..=3).for_each(|i| push(&mut t, 0, i, 0));
    push(&mut t, 1, 1, 0);
    push(&mut t, 2, 1, 0);
    assert_eq!(taken(&mut t), [("a/z".into(), 1, 1), ("p/x".into(), 1, 3), ("m/y".into(), 1, 1)]);
}

#[test]
fn replies_go_after_alarms_and_before_all_else_and_the_backlog_only_where_it_may() {
    let mut t = tail();
    push(&mut t, 0, 1, 0);
    push(&mut t, 3, 1, 0);
    push(&mut t, 2, 1, 0);
    let mut stored = Tail::new("b", vec!["p/x".into()], 0, Ledger::default());
    push(&mut stored, 0, 7, 0);
    let old = stored.take(true, u64::MAX).expect("sealed").sealed;
    t.went_online();
    t.push_backlog((*old).clone(), Key::test(3));
    let order: Vec<String> = std::iter::from_fn(|| t.take(false, u64::MAX)).map(|m| m.sealed.stream.clone()).collect();
    assert_eq!(order, ["a/z", "res/w", "p/x"]);
    assert!(!t.has_to_send(false, u64::MAX) && t.has_to_send(true, u64::MAX));
    assert!(t.take(true, u64::MAX).expect("backlog").backlog);
}

#[test]
fn what_is_stored_takes_along_what_tells_of_losses_before_it() {
    let mut t = tail();
    t.went_online();
    push(&mut t, 0, 2, 0);
    push(&mut t, 4, 1, S / 2);
    push(&mut t, 1, 1, S / 2);
    let stored: Vec<String> = t.take_to_store(S, false).iter().map(|m| m.sealed.stream.clone()).collect();
    assert_eq!(stored, ["loss", "p/x"]);
}

#[test]
fn what_is_made_without_a_connection_is_stored_in_small_messages() {
    let mut t = tail();
    (1..=2000).for_each(|i| push(&mut t, 0, i, 0));
    let sizes: Vec<usize> = t.take_to_store(S, false).iter().map(|m| m.sealed.items.len()).collect();
    assert!(sizes.iter().all(|n| n * 53 <= limits::STORED_MESSAGE_BYTES), "{sizes:?}");
    assert_eq!(sizes.iter().sum::<usize>(), 2000);
}

#[test]
fn while_acknowledgements_come_nothing_but_alarms_goes_to_the_store() {
    let mut t = tail();
    t.went_online();
    for i in 1..=1000 {
        push(&mut t, 0, i, i * S / 1000);
        let sent = t.take(true, u64::MAX).expect("sent");
        assert!(t.take_to_store(i * S / 1000, false).is_empty());
        t.acked(sent.id);
    }
    push(&mut t, 2, 1, S);
    assert_eq!(t.take_to_store(S, false).len(), 1);
    assert_eq!((t.delivered, t.records()), (1000, 1));
}

#[test]
fn what_stays_unacknowledged_for_a_second_is_stored_and_still_in_flight() {
    let mut t = tail();
    t.went_online();
    push(&mut t, 0, 1, 0);
    let sent = t.take(true, u64::MAX).expect("sent");
    assert!(t.take_to_store(S / 2, false).is_empty());
    let stored = t.take_to_store(S, false);
    assert_eq!(stored.len(), 1);
    t.stored(stored[0].id, Key::test(7));
    t.acked(sent.id);
    assert_eq!(t.take_doomed(), [Key::test(7)]);
    assert_eq!((t.bytes(), t.records()), (0, 0));
}

#[test]
fn offline_everything_is_stored_in_batches_and_leaves_ram_but_alarms() {
    let mut t = tail();
    (1..=10).for_each(|i| push(&mut t, 0, i, 0));
    push(&mut t, 2, 1, 0);
    let alarm = t.take_to_store(0, false);
    assert_eq!(alarm.len(), 1);
    t.stored(alarm[0].id, Key::test(0));
    let stored = t.take_to_store(S, false);
    let score = stored.iter().find(|s| s.sealed.class == Class::Score).expect("scores");
    assert_eq!(score.sealed.items.len(), 10);
    t.stored(score.id, Key::test(1));
    assert_eq!((t.records(), t.at_risk), (1, 0));
    t.went_online();
    let alarm = t.take(true, u64::MAX).expect("the alarm");
    assert!(alarm.hist && alarm.sealed.class == Class::Event);
}

#[test]
fn a_broken_connection_sends_again_in_order_before_anything_newer() {
    let mut t = tail();
    t.went_online();
    for i in 1..=3 {
        push(&mut t, 0, i, 0);
        t.take(true, u64::MAX);
    }
    t.went_offline();
    push(&mut t, 0, 4, 0);
    t.went_online();
    let seqs: Vec<u64> = taken(&mut t).iter().map(|(_, first, _)| *first).collect();
    assert_eq!(seqs, [1, 2, 3, 4]);
}

#[test]
fn the_backlog_goes_last_and_back_to_the_store_when_the_connection_breaks() {
    let mut t = tail();
    t.went_online();
    push(&mut t, 0, 9, 0);
    let mut stored = Tail::new("b", vec!["p/x".into()], 0, Ledger::default());
    push(&mut stored, 0, 1, 0);
    let old = stored.take(true, u64::MAX).expect("sealed").sealed;
    t.push_backlog((*old).clone(), Key::test(3));
    assert!(t.holds(Key::test(3)));
    let live = t.take(true, u64::MAX).expect("live");
    assert_eq!((live.sealed.seqs(), live.hist), ((9, 9), false));
    assert!(t.take(true, u64::MAX).expect("backlog").hist);
    t.went_offline();
    assert!(!t.holds(Key::test(3)));
    assert_eq!(t.records(), 1);
}

#[test]
fn without_room_and_disk_the_oldest_of_the_least_class_leaves_and_is_booked() {
    let mut t = tail();
    push(&mut t, 0, 1, 0);
    push(&mut t, 1, 1, 5);
    push(&mut t, 1, 2, 6);
    push(&mut t, 2, 1, 0);
    t.shed("no_room");
    t.shed("no_room");
    t.shed("no_room");
    let lost: Vec<_> = t.ledger.take().into_iter().map(|e| (e.stream, e.first, e.last)).collect();
    assert_eq!(lost, [("m/y".into(), 1, 2), ("p/x".into(), 1, 1)]);
}

#[test]
fn full_tail_sheds_least_class_first_while_the_committer_writes() {
    let mut t = tail();
    push(&mut t, 1, 1, 0);
    push(&mut t, 0, 1, 1);
    push(&mut t, 3, 1, 2);
    // The committer has all of them; the disk hangs, and only alarms come.
    let writing = t.take_to_store(S, true);
    assert_eq!(writing.len(), 3);
    push(&mut t, 2, 1, 3);
    push(&mut t, 2, 2, 4);
    let order: Vec<_> = (0..5)
        .map(|_| {
            assert!(t.shed("no_room"));
            t.ledger.take().into_iter().map(|e| e.stream).collect::<String>()
        })
        .collect();
    assert_eq!(order, ["m/y", "p/x", "res/w", "a/z", "a/z"]);
    assert!(!t.shed("no_room"), "there is nothing left to shed");
    assert_eq!((t.bytes(), t.records(), t.at_risk), (0, 0, 0));
    // It is in the loss ledger, so what the commit stored of it is removed again.
    writing.iter().zip(0..).for_each(|(parcel, n)| t.stored(parcel.id, Key::test(n)));
    assert_eq!(t.take_doomed().len(), 3);
}

#[test]
fn full_tail_in_flight_sheds_without_end_and_keeps_what_is_stored() {
    let mut t = tail();
    t.went_online();
    push(&mut t, 2, 1, 0);
    push(&mut t, 0, 1, 0);
    let (alarm, score) = (t.take(true, u64::MAX).expect("alarm"), t.take(true, u64::MAX).expect("score"));
    let stored = t.take_to_store(0, false);
    t.stored(stored[0].id, Key::test(5));
    assert!(t.shed("no_room"));
    assert_eq!(t.ledger.take().into_iter().map(|e| e.stream).collect::<Vec<_>>(), ["p/x"]);
    assert!(t.shed("no_room") && !t.shed("no_room"));
    assert!(t.ledger.take().is_empty() && t.take_doomed().is_empty(), "a stored alarm only leaves RAM");
    t.acked(alarm.id);
    t.acked(score.id);
    assert_eq!((t.bytes(), t.records(), t.at_risk), (0, 0, 0));
}

#[test]
fn message_stored_twice_in_one_commit_is_counted_once() {
    let mut t = tail();
    t.went_online();
    push(&mut t, 4, 1, 0);
    let sent = t.take(true, u64::MAX).expect("in flight");
    t.stored(sent.id, Key::test(0));
    t.stored(sent.id, Key::test(1));
    assert_eq!((t.at_risk, t.take_doomed()), (0, vec![Key::test(1)]));
}

#[test]
fn live_records_wait_for_company_and_alarms_replies_and_what_fills_a_message_do_not() {
    let mut t = tail();
    t.went_online();
    t.linger(10 * S);
    push(&mut t, 0, 1, 0);
    push(&mut t, 0, 2, 4 * S);
    push(&mut t, 1, 1, 6 * S);
    assert!(!t.has_to_send(true, 9 * S) && t.take(true, 9 * S).is_none());
    assert_eq!(t.ripe_ns(), Some(10 * S));
    push(&mut t, 2, 1, 9 * S);
    push(&mut t, 3, 1, 9 * S);
    let streams = |t: &mut Tail, now| -> Vec<(String, usize)> {
        std::iter::from_fn(|| t.take(true, now)).map(|m| (m.sealed.stream.clone(), m.sealed.items.len())).collect()
    };
    assert_eq!(streams(&mut t, 9 * S), [("a/z".into(), 1), ("res/w".into(), 1)]);
    assert_eq!(streams(&mut t, 10 * S), [("p/x".into(), 2)], "each stream by its own oldest record");
    assert_eq!(t.ripe_ns(), Some(16 * S));
    (0..limits::MESSAGE_RECORDS as u64).for_each(|i| push(&mut t, 0, 3 + i, 10 * S));
    assert_eq!(streams(&mut t, 10 * S), [("p/x".into(), limits::MESSAGE_RECORDS)], "it fills a message");
    t.linger(0);
    assert_eq!(streams(&mut t, 10 * S), [("m/y".into(), 1)], "the stop");
}

#[test]
fn a_record_that_waits_for_company_costs_no_write_and_one_that_stays_unacknowledged_does() {
    let mut t = tail();
    t.went_online();
    t.linger(10 * S);
    push(&mut t, 0, 1, 0);
    assert!(t.take_to_store(9 * S, false).is_empty(), "it waits on purpose");
    assert!(t.take(true, 10 * S).is_some());
    assert!(t.take_to_store(10 * S + S / 2, false).is_empty(), "it was just sent");
    assert_eq!(t.take_to_store(11 * S, false).len(), 1, "unacknowledged for a second");
    push(&mut t, 0, 2, 20 * S);
    t.went_offline();
    assert!(!t.take_to_store(21 * S, false).is_empty(), "without a connection nothing waits for company");
    push(&mut t, 0, 3, 30 * S);
    t.went_online();
    assert!(!t.take_to_store(30 * S, true).is_empty(), "the stop stores what waits");
}
