//! kill -9, again and again, while rows come in: what was accepted is never lost.

use std::time::{Duration, Instant};

use rig::{Feed, Mosquitto, Site, Sub, Tty, eventually};

#[derive(Clone, Copy, PartialEq)]
enum Broker {
    Up,
    Down,
    Flapping,
}

/// A random number below `most`.
fn random(most: u64) -> u64 {
    fastrand::u64(..most)
}

fn kills(broker_is: Broker, kills: usize) {
    let (mut broker, mut tty) = (Mosquitto::start(), Tty::default());
    let sub = Sub::new(broker.port);
    if broker_is != Broker::Up {
        broker.stop();
    }
    let site = Site::new(broker.port).with_sensor(&tty).with("[stream.raw]\nchannels = [\"a\"]\n");
    let mut feed = Feed::default();
    let mut up = broker_is == Broker::Up;
    for n in 0..kills {
        let daemon = site.run();
        if broker_is == Broker::Flapping {
            if up {
                broker.stop()
            } else {
                broker.up()
            }
            up = !up;
        }
        // From the middle of the start to some commits later.
        feed.give(&mut tty, &daemon, 3000, Duration::from_millis(random(400) + 900 * u64::from(n % 3 == 0)));
        daemon.kill();
        feed.ended(Instant::now());
    }
    if !up {
        broker.up();
    }
    let daemon = site.run();
    eventually("the port is open", || daemon.log().contains("connected broker").then_some(()));
    feed.drain(&mut tty, &sub, Duration::from_secs(60));
    daemon.stop_well();
    let tally = feed.tally(&sub);
    let word = ["up", "down", "flapping"][broker_is as usize];
    rig::measured(&format!("{kills} kills, broker {word}: {tally}"));
    tally.check();
    // Each connection may repeat what was in flight: 100 messages.
    assert!(tally.doubled_messages <= 100 * (kills as u64 + 1), "{tally:?}");
    assert!(tally.delivered > tally.made / 3, "{tally:?}");
}

fn times(n: usize) -> usize {
    if rig::long() { n * 10 } else { n }
}

#[test]
fn acknowledged_records_survive_kills_with_the_broker_up() {
    kills(Broker::Up, times(34));
}

#[test]
fn stored_records_survive_kills_with_the_broker_down() {
    kills(Broker::Down, times(33));
}

#[test]
fn records_survive_kills_with_a_flapping_broker() {
    kills(Broker::Flapping, times(33));
}
