//! How long the items of a lot wait, for the producer at the very beginning: while they wait for too long it reads no more, or
//! only little.
//!
//! It is not the push that waits: one stage feeds many lanes, and a burst for a slow consumer must not delay what it makes for
//! the others.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{sync::Notify, time::timeout};

use super::{Sender, Shared, Weigh};

/// A lane, whatever its items.
trait Lane: Send + Sync {
    /// Whether the oldest item of a lot has waited for longer than `age`.
    fn is_late(&self, lot: usize, age: Duration) -> bool;
    /// The consumer took something.
    fn took(&self) -> &Notify;
}

impl<T: Weigh + Send> Lane for Shared<T> {
    fn is_late(&self, lot: usize, age: Duration) -> bool {
        let state = self.lock();
        state.receiver && state.lots[lot].queue.front().is_some_and(|(came, _)| came.elapsed() >= age)
    }

    fn took(&self) -> &Notify {
        &self.space_async
    }
}

/// Watches one lot of a lane. It is no producer: the lane closes without it.
#[derive(Clone)]
pub struct Watch {
    lane: Arc<dyn Lane>,
    lot: usize,
    age: Duration,
    patience: Duration,
}

impl<T: Weigh + Send + 'static> Sender<T> {
    /// Watches this lot: its items are to wait no longer than `age` while the consumer takes one within each `patience`.
    pub fn watch(&self, age: Duration, patience: Duration) -> Watch {
        Watch { lane: self.lane.clone(), lot: self.lot, age, patience }
    }
}

impl Watch {
    fn is_late(&self) -> bool {
        self.lane.is_late(self.lot, self.age)
    }

    /// Waits while items wait for too long, as long as the consumer takes something within each patience. One that hangs slows the
    /// producer down and does not stop it.
    pub async fn clear(&self) {
        loop {
            let took = self.lane.took().notified();
            if !self.is_late() || timeout(self.patience, took).await.is_err() {
                return;
            }
        }
    }
}

/// Waits for all of these at once: consumers that hang cost one patience together, which is less than a source's tick
/// (`limits::TICK`), so that it reads on.
pub async fn clear(watches: &[Watch]) {
    if watches.iter().any(Watch::is_late) {
        join_all(watches.iter().map(Watch::clear)).await;
    }
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
        let watch = producer.watch(AGE, LONG);
        assert!(is_clear(&watch).await, "nothing waits");
        (0..3).for_each(|i| producer.push(i, &mut Vec::new()));
        tokio::time::sleep(2 * AGE).await;
        take_one(&consumer);
        assert!(!is_clear(&watch).await, "two are late");
        let waiting = watch.clone();
        let waited = tokio::spawn(async move { waiting.clear().await });
        tokio::task::yield_now().await;
        take_one(&consumer);
        tokio::task::yield_now().await;
        assert!(!waited.is_finished(), "one is late");
        take_one(&consumer);
        timeout(Duration::from_secs(5), waited).await.expect("it goes on when the last is taken").expect("no panic");
    }

    #[tokio::test]
    async fn consumer_that_hangs_stops_no_producer_and_slows_no_other_lot() {
        let (producer, consumer) = lane::<u32>(BOUNDS);
        let (patient, other) = (producer.watch(AGE, LONG), producer.of_lot(1).watch(AGE, LONG));
        producer.push(0, &mut Vec::new());
        tokio::time::sleep(AGE).await;
        assert!(!is_clear(&patient).await);
        let watch = producer.watch(AGE, AGE);
        timeout(Duration::from_secs(5), watch.clear()).await.expect("it goes on after its patience");
        assert!(is_clear(&other).await);
        drop(consumer);
        assert!(is_clear(&patient).await, "and does not wait for a consumer that is gone");
    }

    #[tokio::test]
    async fn many_consumers_that_hang_cost_one_patience_together() {
        const PATIENCE: Duration = Duration::from_millis(50);
        let lanes: Vec<_> = (0..100).map(|_| lane::<u32>(BOUNDS)).collect();
        lanes.iter().for_each(|(producer, _)| producer.push(0, &mut Vec::new()));
        tokio::time::sleep(AGE).await;
        let watches: Vec<Watch> = lanes.iter().map(|(producer, _)| producer.watch(AGE, PATIENCE)).collect();
        let waited = timeout(40 * PATIENCE, clear(&watches)).await;
        waited.expect("a source that waits for them in turns would be asked for its tick before, and never read");
    }
}
