//! A bounded queue between two stages that sheds its oldest when full, and hands what it shed back to be counted.
//!
//! A full lane first makes the producer wait, for as long as its patience: a consumer that is merely busy makes room
//! in that time, and a sensor with flow control then loses nothing. A consumer that took nothing during a whole
//! patience counts as stalled. Until it takes again every push sheds at once, so that the stages upstream go on.
//! Closing is by dropping the senders: the receiver then empties what is left and ends.
//!
//! Producers that must not delay one another have lots: each lot is a queue of its own, the consumer takes from them in
//! turns, and a producer waits and sheds in its own lot alone. One lot may fill the whole lane; while it does, each other
//! one still has its share of the bounds, so that all together hold less than twice the bounds.
//!
//! These bounds hold seconds of a fast sensor, for the time in which a consumer does not move. One that moves needs milliseconds: a
//! producer that can be held back asks a `Watch` before it reads, so that a flood waits where it comes from.

mod watch;

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

pub use watch::{Watch, clear};

/// What an item counts against the lane's byte bound.
pub trait Weigh {
    /// Bytes held in memory, roughly.
    fn weight(&self) -> usize;
}

/// Bounds of a lane.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most items.
    pub items: usize,
    /// Most bytes.
    pub bytes: usize,
    /// How long a push may wait before the oldest is shed; `None` waits for ever (replay).
    pub patience: Option<Duration>,
}

struct Lot<T> {
    /// With when each item came.
    queue: VecDeque<(Instant, T)>,
    bytes: usize,
    /// Items that have left it, so far.
    left: u64,
    /// Tasks of one lot put in one after the other, first come first served: else the one that is just running would take
    /// every place that becomes free, and starve the others.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl<T> Lot<T> {
    fn new() -> Self {
        Self { queue: VecDeque::new(), bytes: 0, left: 0, turn: Arc::default() }
    }
}

struct State<T> {
    lots: Vec<Lot<T>>,
    items: usize,
    bytes: usize,
    /// The lot whose turn it is.
    turn: usize,
    senders: usize,
    receiver: bool,
    /// How often the consumer took something: a producer that waits sees by it whether the consumer moves.
    takes: u64,
    stuck: bool,
    /// The consumer, and so many producers, wait for a condition. To wake no one is a system call too, and most items come where
    /// no one waits.
    is_awaited: bool,
    waiting: usize,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    bounds: Bounds,
    items: Condvar,
    space: Condvar,
    space_async: Notify,
}

impl<T: Weigh> State<T> {
    fn pop(&mut self, lot: usize) -> Option<T> {
        let own = &mut self.lots[lot];
        let (_, item) = own.queue.pop_front()?;
        own.bytes -= item.weight();
        own.left += 1;
        self.bytes -= item.weight();
        self.items -= 1;
        Some(item)
    }

    /// The next item, one lot after the other.
    fn next(&mut self) -> Option<T> {
        for _ in 0..self.lots.len() {
            let lot = self.turn;
            self.turn = (self.turn + 1) % self.lots.len();
            if let Some(item) = self.pop(lot) {
                return Some(item);
            }
        }
        None
    }
}

impl<T: Weigh> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // A panic inside the lock leaves a valid queue: nothing below can panic between two of its fields.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this lot has no room: the lane is full, and the lot holds its share of it.
    fn full(&self, state: &State<T>, lot: usize) -> bool {
        let (lots, own) = (state.lots.len(), &state.lots[lot]);
        let share = |bound: usize| (bound / lots).max(1);
        let full = |all: usize, own: usize, bound: usize| all >= bound && own >= share(bound);
        state.receiver
            && !own.queue.is_empty()
            && (full(state.items, own.queue.len(), self.bounds.items)
                || full(state.bytes, own.bytes, self.bounds.bytes))
    }

    /// Puts `item` in, shedding the oldest of its lot while there is no room.
    fn admit(&self, mut state: MutexGuard<'_, State<T>>, lot: usize, item: T, shed: &mut Vec<T>) {
        if !state.receiver {
            return;
        }
        while self.full(&state, lot) {
            shed.extend(state.pop(lot));
        }
        state.items += 1;
        state.bytes += item.weight();
        let own = &mut state.lots[lot];
        own.bytes += item.weight();
        own.queue.push_back((Instant::now(), item));
        let is_awaited = std::mem::take(&mut state.is_awaited);
        drop(state);
        if is_awaited {
            self.items.notify_one();
        }
    }
}

/// The producer's end; clone it for more producers of the same lot.
pub struct Sender<T> {
    lane: Arc<Shared<T>>,
    lot: usize,
}

/// The consumer's end.
pub struct Receiver<T>(Arc<Shared<T>>);

/// Makes a lane.
pub fn lane<T: Weigh>(bounds: Bounds) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            lots: vec![Lot::new()],
            items: 0,
            bytes: 0,
            turn: 0,
            senders: 1,
            receiver: true,
            takes: 0,
            stuck: false,
            is_awaited: false,
            waiting: 0,
        }),
        bounds,
        items: Condvar::new(),
        space: Condvar::new(),
        space_async: Notify::new(),
    });
    (Sender { lane: shared.clone(), lot: 0 }, Receiver(shared))
}

impl<T: Weigh> Sender<T> {
    /// Another producer, of this lot.
    pub fn of_lot(&self, lot: usize) -> Self {
        let mut state = self.lane.lock();
        while state.lots.len() <= lot {
            state.lots.push(Lot::new());
        }
        state.senders += 1;
        drop(state);
        Self { lane: self.lane.clone(), lot }
    }

    /// Puts an item in from a thread. What had to leave for it is appended to `shed`.
    pub fn push(&self, item: T, shed: &mut Vec<T>) {
        let (lane, lot) = (&*self.lane, self.lot);
        let mut state = lane.lock();
        match lane.bounds.patience {
            None => {
                while lane.full(&state, lot) {
                    state.waiting += 1;
                    state = lane.space.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.waiting -= 1;
                }
            }
            Some(patience) => {
                while lane.full(&state, lot) && !state.stuck {
                    let takes = state.takes;
                    state.waiting += 1;
                    let waited = lane.space.wait_timeout_while(state, patience, |s| lane.full(s, lot));
                    let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                    state = guard;
                    state.waiting -= 1;
                    state.stuck = timeout.timed_out() && state.takes == takes;
                }
            }
        }
        lane.admit(state, lot, item, shed);
    }

    /// Puts an item in from a task: waits like `push`, without blocking the runtime.
    pub async fn push_async(&self, item: T, shed: &mut Vec<T>) {
        let turn = self.lane.lock().lots[self.lot].turn.clone();
        let _turn = turn.lock().await;
        while self.is_full_and_moving() {
            let takes = self.lane.lock().takes;
            let room = async {
                loop {
                    let notified = self.lane.space_async.notified();
                    if !self.is_full_and_moving() {
                        return;
                    }
                    notified.await;
                }
            };
            match self.lane.bounds.patience {
                None => room.await,
                Some(patience) => {
                    let waited = tokio::time::timeout(patience, room).await;
                    let mut state = self.lane.lock();
                    state.stuck = waited.is_err() && state.takes == takes;
                }
            }
        }
        self.lane.admit(self.lane.lock(), self.lot, item, shed);
    }

    fn is_full_and_moving(&self) -> bool {
        let state = self.lane.lock();
        self.lane.full(&state, self.lot) && !state.stuck
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.lane.state.lock().unwrap_or_else(PoisonError::into_inner).senders += 1;
        Self { lane: self.lane.clone(), lot: self.lot }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.lane.state.lock().unwrap_or_else(PoisonError::into_inner).senders -= 1;
        self.lane.items.notify_all();
    }
}

/// What `Receiver::take` found.
#[derive(Debug, PartialEq, Eq)]
pub enum Took {
    /// Items were appended.
    Some,
    /// Nothing came in time.
    Nothing,
    /// All senders are gone and the lane is empty.
    Closed,
}

impl<T: Weigh> Receiver<T> {
    /// Appends up to `most` waiting items to `into`; waits up to `wait` for the first.
    pub fn take(&self, into: &mut Vec<T>, most: usize, wait: Duration) -> Took {
        let lane = &*self.0;
        let mut state = lane.lock();
        if state.items == 0 && state.senders > 0 && !wait.is_zero() {
            state.is_awaited = true;
            let waited = lane.items.wait_timeout_while(state, wait, |s| s.items == 0 && s.senders > 0);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.is_awaited = false;
        }
        if state.items == 0 {
            return if state.senders == 0 { Took::Closed } else { Took::Nothing };
        }
        let n = most.min(state.items);
        into.extend(std::iter::from_fn(|| state.next()).take(n));
        state.stuck = false;
        state.takes += 1;
        let waiting = state.waiting;
        drop(state);
        if waiting > 0 {
            lane.space.notify_all();
        }
        lane.space_async.notify_waiters();
        Took::Some
    }

    /// All senders are gone.
    pub fn is_closed(&self) -> bool {
        self.0.lock().senders == 0
    }

    /// Items waiting now.
    pub fn depth(&self) -> usize {
        self.0.lock().items
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.receiver = false;
        state.lots.iter_mut().for_each(|lot| lot.queue.clear());
        drop(state);
        self.0.space.notify_all();
        self.0.space_async.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Weigh for u32 {
        fn weight(&self) -> usize {
            4
        }
    }

    const BOUNDS: Bounds = Bounds { items: 3, bytes: 1 << 20, patience: Some(Duration::from_millis(20)) };

    #[test]
    fn a_full_lane_with_a_stuck_consumer_sheds_its_oldest_and_hands_them_back() {
        let (tx, rx) = lane::<u32>(BOUNDS);
        let mut shed = Vec::new();
        (0..5).for_each(|i| tx.push(i, &mut shed));
        assert_eq!(shed, [0, 1]);
        let mut got = Vec::new();
        assert_eq!(rx.take(&mut got, 10, Duration::ZERO), Took::Some);
        assert_eq!(got, [2, 3, 4]);
    }

    #[test]
    fn a_consumer_that_moves_makes_the_producer_wait_instead() {
        let (tx, rx) = lane::<u32>(Bounds { patience: Some(Duration::from_secs(5)), ..BOUNDS });
        let consumer = std::thread::spawn(move || {
            let mut got = Vec::new();
            while rx.take(&mut got, 1, Duration::from_secs(5)) != Took::Closed {}
            got
        });
        let mut shed = Vec::new();
        (0..200).for_each(|i| tx.push(i, &mut shed));
        drop(tx);
        assert!(shed.is_empty());
        assert_eq!(consumer.join().ok(), Some((0..200).collect()));
    }

    #[test]
    fn tasks_that_flood_a_lane_get_equal_shares() {
        let (tx, rx) = lane::<u32>(Bounds { patience: Some(Duration::from_secs(5)), ..BOUNDS });
        let consumer = std::thread::spawn(move || {
            let (mut got, mut counts) = (Vec::new(), [0u32; 4]);
            while counts.iter().sum::<u32>() < 400 && rx.take(&mut got, 1, Duration::from_secs(5)) == Took::Some {
                got.drain(..).for_each(|i| counts[i as usize] += 1);
                std::thread::sleep(Duration::from_micros(50));
            }
            counts
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
        runtime
            .block_on(async {
                let flood = |i: u32| {
                    let tx = tx.clone();
                    async move {
                        for _ in 0..400 {
                            tx.push_async(i, &mut Vec::new()).await
                        }
                    }
                };
                tokio::join!(
                    tokio::spawn(flood(0)),
                    tokio::spawn(flood(1)),
                    tokio::spawn(flood(2)),
                    tokio::spawn(flood(3))
                )
            })
            .0
            .expect("no panic");
        let counts = consumer.join().expect("no panic");
        assert!(counts.iter().all(|n| (90..=110).contains(n)), "{counts:?}");
    }

    #[test]
    fn producer_that_floods_a_lane_delays_no_other_lot_by_more_than_a_turn() {
        let (flood, rx) = lane::<u32>(Bounds { items: 8, ..BOUNDS });
        let (good, mut shed, mut got) = (flood.of_lot(1), Vec::new(), Vec::new());
        (0..1000).for_each(|_| flood.push(0, &mut shed));
        (1..=3).for_each(|i| good.push(i, &mut shed));
        assert_eq!(shed, vec![0; 992], "the good lot sheds only the flood, and loses nothing");
        for _ in 0..6 {
            rx.take(&mut got, 1, Duration::ZERO);
        }
        assert_eq!(got, [0, 1, 0, 2, 0, 3]);
    }

    #[test]
    fn lot_that_fills_the_lane_leaves_the_others_their_share() {
        let (flood, rx) = lane::<u32>(Bounds { items: 100, bytes: 40, patience: Some(Duration::ZERO) });
        let (good, mut shed) = (flood.of_lot(1), Vec::new());
        (0..20).for_each(|i| flood.push(i, &mut shed));
        assert_eq!((shed.len(), rx.depth()), (10, 10), "the whole bound, while no other lot needs it");
        (100..120).for_each(|i| good.push(i, &mut shed));
        assert_eq!(shed.iter().filter(|i| **i >= 100).count(), 15, "half of the bound for the other one");
        assert_eq!(rx.depth(), 15);
    }

    #[test]
    fn the_byte_bound_counts_and_one_item_always_fits() {
        let (tx, rx) = lane::<u32>(Bounds { items: 100, bytes: 2, patience: Some(Duration::ZERO) });
        let mut shed = Vec::new();
        tx.push(1, &mut shed);
        tx.push(2, &mut shed);
        assert_eq!((shed, rx.depth()), (vec![1], 1));
    }
}
