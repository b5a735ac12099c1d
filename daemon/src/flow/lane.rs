//! A bounded queue between two stages that sheds its oldest when full, and hands what it shed back to be counted.
//!
//! A full lane first makes the producer wait, for as long as its patience: a consumer that is merely busy makes room
//! in that time, and a sensor with flow control then loses nothing. A consumer that took nothing during a whole
//! patience is held to be stuck; until it takes again every push sheds at once, so that it stops nobody upstream.
//! Closing is by dropping the senders: the receiver then empties what is left and ends.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

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

struct State<T> {
    queue: VecDeque<T>,
    bytes: usize,
    senders: usize,
    receiver: bool,
    /// How often the consumer took something: a producer that waits sees by it whether the consumer moves.
    takes: u64,
    stuck: bool,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    bounds: Bounds,
    items: Condvar,
    space: Condvar,
    space_async: Notify,
    /// Tasks put in one after the other, first come first served: else the one that is just running would take every
    /// place that becomes free, and starve the others.
    turn: tokio::sync::Mutex<()>,
}

impl<T: Weigh> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // A panic inside the lock leaves a valid queue: nothing below can panic between two of its fields.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn full(&self, state: &State<T>) -> bool {
        state.receiver
            && (state.queue.len() >= self.bounds.items || state.bytes >= self.bounds.bytes)
            && !state.queue.is_empty()
    }

    /// Puts `item` in, shedding the oldest while there is no room.
    fn admit(&self, mut state: MutexGuard<'_, State<T>>, item: T, shed: &mut Vec<T>) {
        if !state.receiver {
            return;
        }
        while self.full(&state) {
            if let Some(old) = state.queue.pop_front() {
                state.bytes -= old.weight();
                shed.push(old);
            }
        }
        state.bytes += item.weight();
        state.queue.push_back(item);
        drop(state);
        self.items.notify_one();
    }
}

/// The producer's end; clone it for more producers.
pub struct Sender<T>(Arc<Shared<T>>);

/// The consumer's end.
pub struct Receiver<T>(Arc<Shared<T>>);

/// Makes a lane.
pub fn lane<T: Weigh>(bounds: Bounds) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            queue: VecDeque::new(),
            bytes: 0,
            senders: 1,
            receiver: true,
            takes: 0,
            stuck: false,
        }),
        bounds,
        items: Condvar::new(),
        space: Condvar::new(),
        space_async: Notify::new(),
        turn: tokio::sync::Mutex::new(()),
    });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T: Weigh> Sender<T> {
    /// Puts an item in from a thread. What had to leave for it is appended to `shed`.
    pub fn push(&self, item: T, shed: &mut Vec<T>) {
        let lane = &*self.0;
        let mut state = lane.lock();
        match lane.bounds.patience {
            None => {
                while lane.full(&state) {
                    state = lane.space.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
            Some(patience) => {
                while lane.full(&state) && !state.stuck {
                    let takes = state.takes;
                    let waited = lane.space.wait_timeout_while(state, patience, |s| lane.full(s));
                    let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                    state = guard;
                    state.stuck = timeout.timed_out() && state.takes == takes;
                }
            }
        }
        lane.admit(state, item, shed);
    }

    /// Puts an item in from a task: waits like `push`, without blocking the runtime.
    pub async fn push_async(&self, item: T, shed: &mut Vec<T>) {
        let _turn = self.0.turn.lock().await;
        while self.is_full_and_moving() {
            let takes = self.0.lock().takes;
            let room = async {
                loop {
                    let notified = self.0.space_async.notified();
                    if !self.is_full_and_moving() {
                        return;
                    }
                    notified.await;
                }
            };
            match self.0.bounds.patience {
                None => room.await,
                Some(patience) => {
                    let waited = tokio::time::timeout(patience, room).await;
                    let mut state = self.0.lock();
                    state.stuck = waited.is_err() && state.takes == takes;
                }
            }
        }
        self.0.admit(self.0.lock(), item, shed);
    }

    fn is_full_and_moving(&self) -> bool {
        let state = self.0.lock();
        self.0.full(&state) && !state.stuck
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).senders += 1;
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).senders -= 1;
        self.0.items.notify_all();
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
        let waited = lane.items.wait_timeout_while(lane.lock(), wait, |s| s.queue.is_empty() && s.senders > 0);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.queue.is_empty() {
            return if state.senders == 0 { Took::Closed } else { Took::Nothing };
        }
        let n = most.min(state.queue.len());
        for item in state.queue.drain(..n).collect::<Vec<_>>() {
            state.bytes -= item.weight();
            into.push(item);
        }
        state.stuck = false;
        state.takes += 1;
        drop(state);
        lane.space.notify_all();
        lane.space_async.notify_waiters();
        Took::Some
    }

    /// All senders are gone.
    pub fn is_closed(&self) -> bool {
        self.0.lock().senders == 0
    }

    /// Items waiting now.
    pub fn depth(&self) -> usize {
        self.0.lock().queue.len()
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.receiver = false;
        state.queue.clear();
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
    fn the_byte_bound_counts_and_one_item_always_fits() {
        let (tx, rx) = lane::<u32>(Bounds { items: 100, bytes: 2, patience: Some(Duration::ZERO) });
        let mut shed = Vec::new();
        tx.push(1, &mut shed);
        tx.push(2, &mut shed);
        assert_eq!((shed, rx.depth()), (vec![1], 1));
    }
}
