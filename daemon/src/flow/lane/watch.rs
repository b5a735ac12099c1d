//! How long the items of a lot wait, for the producer at the very beginning: while too many wait for too long it reads no more.
//!
//! It is not the push that waits: one stage feeds many lanes, and a burst for a slow consumer must not delay what it makes for
//! the others. And only a consumer that takes many is waited for: one that is slow or hangs costs one patience, and no more until it
//! has caught up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{sync::Notify, time::timeout};

use super::{Sender, Shared, Weigh};

/// A lane, whatever its items.
trait Lane: Send + Sync {
    /// Whether `least` items of a lot wait, and the oldest of them for longer than `age`.
    fn is_late(&self, lot: usize, least: usize, age: Duration) -> bool;
    /// Items of a lot that have left the lane so far.
    fn left(&self, lot: usize) -> u64;
    /// The consumer took something.
    fn took(&self) -> &Notify;
}

impl<T: Weigh + Send> Lane for Shared<T> {
    fn is_late(&self, lot: usize, least: usize, age: Duration) -> bool {
        let state = self.lock();
        let queue = &state.lots[lot].queue;
        state.receiver && queue.len() >= least && queue.front().is_some_and(|(came, _)| came.elapsed() >= age)
    }

    fn left(&self, lot: usize) -> u64 {
        self.lock().lots[lot].left
    }

    fn took(&self) -> &Notify {
        &self.space_async
    }
}

/// Watches one lot of a lane. It is no producer: the lane closes without it.
pub struct Watch {
    lane: Arc<dyn Lane>,
    lot: usize,
    least: usize,
    age: Duration,
    patience: Duration,
    /// A wait was in vain; not again before the consumer has caught up.
    in_vain: AtomicBool,
}

impl<T: Weigh + Send + 'static> Sender<T> {
    /// Watches this lot: where `least` items or more wait, the oldest of them is to wait no longer than `age`. The producer waits while
    /// as many leave the lane within each `patience`.
    pub fn watch(&self, least: usize, age: Duration, patience: Duration) -> Watch {
        Watch { lane: self.lane.clone(), lot: self.lot, least, age, patience, in_vain: AtomicBool::new(false) }
    }
}

impl Watch {
    fn is_late(&self) -> bool {
        self.lane.is_late(self.lot, self.least, self.age)
    }

    /// Waits while items wait for too long.
    pub async fn clear(&self) {
        if !self.is_late() {
            self.in_vain.store(false, Relaxed);
        } else if !self.in_vain.load(Relaxed) {
            let mut left = self.lane.left(self.lot);
            while timeout(self.patience, self.until_clear()).await.is_err() {
                let before = std::mem::replace(&mut left, self.lane.left(self.lot));
                if left - before < self.least as u64 {
                    self.in_vain.store(true, Relaxed);
                    return;
                }
            }
        }
    }

    async fn until_clear(&self) {
        loop {
            let took = self.lane.took().notified();
            if !self.is_late() {
                return;
            }
            took.await;
        }
    }
}

/// Waits for all of these at once: consumers that hang cost one patience together, which is less than a source's tick
/// (`limits::TICK`), so that it reads on.
pub async fn clear(watches: &[Watch]) {
    join_all(watches.iter().map(Watch::clear)).await;
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Bounds, Receiver, lane},
        *,
    };

    const BOUNDS: Bounds = Bounds { items: 1000, bytes: 1 << 20, patience: Some(Duration::from_secs(5)) };
    const AGE: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(600);

    fn take_one(lane: &Receiver<u32>) {
        lane.take(&mut Vec::new(), 1, Duration::ZERO);
    }

    /// Whether the watch lets its producer go on at once.
    async fn is_clear(watch: &Watch) -> bool {
        timeout(Duration::from_millis(1), watch.clear()).await.is_ok()
    }

    #[tokio::test]
    async fn producer_waits_while_its_oldest_item_is_late() {
        let (producer, consumer) = lane::<u32>(BOUNDS);
        let watch = producer.watch(1, AGE, LONG);
        assert!(is_clear(&watch).await, "nothing waits");
        (0..3).for_each(|i| producer.push(i, &mut Vec::new()));
        tokio::time::sleep(2 * AGE).await;
        take_one(&consumer);
        assert!(!is_clear(&watch).await, "two are late");
        let waited = tokio::spawn(async move { watch.clear().await });
        tokio::task::yield_now().await;
        take_one(&consumer);
        tokio::task::yield_now().await;
        assert!(!waited.is_finished(), "one is late");
        take_one(&consumer);
        timeout(Duration::from_secs(5), waited).await.expect("it goes on when the last is taken").expect("no panic");
    }

    #[tokio::test]
    async fn few_late_items_hold_nothing_up() {
        let (producer, _consumer) = lane::<u32>(BOUNDS);
        let watch = producer.watch(3, AGE, LONG);
        (0..2).for_each(|i| producer.push(i, &mut Vec::new()));
        tokio::time::sleep(2 * AGE).await;
        assert!(is_clear(&watch).await, "two of three");
        producer.push(2, &mut Vec::new());
        assert!(!is_clear(&watch).await, "three");
    }

    #[tokio::test]
    async fn consumer_that_does_not_keep_up_costs_one_patience_until_it_has_caught_up() {
        let (producer, consumer) = lane::<u32>(BOUNDS);
        let watch = producer.watch(2, AGE, 10 * AGE);
        let late = || async {
            (0..6).for_each(|i| producer.push(i, &mut Vec::new()));
            tokio::time::sleep(2 * AGE).await;
        };
        late().await;
        let slow = async {
            tokio::time::sleep(AGE).await;
            take_one(&consumer);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = watch.clear() => {}
            () = slow => {}
            () = tokio::time::sleep(Duration::from_secs(5)) => panic!("it takes one in a patience, and is waited for"),
        }
        assert!(is_clear(&watch).await, "not again");
        (0..4).for_each(|_| take_one(&consumer));
        assert!(is_clear(&watch).await, "one waits: it has caught up");
        late().await;
        assert!(!is_clear(&watch).await, "waited for again");
    }

    #[tokio::test]
    async fn consumer_that_hangs_slows_no_other_lot_and_one_that_is_gone_is_not_waited_for() {
        let (producer, consumer) = lane::<u32>(BOUNDS);
        let (watch, other) = (producer.watch(1, AGE, LONG), producer.of_lot(1).watch(1, AGE, LONG));
        producer.push(0, &mut Vec::new());
        tokio::time::sleep(AGE).await;
        assert!(!is_clear(&watch).await);
        assert!(is_clear(&other).await);
        drop(consumer);
        assert!(is_clear(&watch).await);
    }

    #[tokio::test]
    async fn many_consumers_that_hang_cost_one_patience_together() {
        const PATIENCE: Duration = Duration::from_millis(50);
        let lanes: Vec<_> = (0..100).map(|_| lane::<u32>(BOUNDS)).collect();
        lanes.iter().for_each(|(producer, _)| producer.push(0, &mut Vec::new()));
        tokio::time::sleep(AGE).await;
        let watches: Vec<Watch> = lanes.iter().map(|(producer, _)| producer.watch(1, AGE, PATIENCE)).collect();
        let waited = timeout(40 * PATIENCE, clear(&watches)).await;
        waited.expect("a source that waits for them in turns would be asked for its tick before, and never read");
    }
}
