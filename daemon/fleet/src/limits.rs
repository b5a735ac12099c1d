//! What is bounded in the operator's program, with its arithmetic.

use std::time::Duration;

/// Devices that are held: 200,000 × 2 KiB is 400 MiB, more than a laptop should give. Further ones are counted, not shown.
pub const DEVICES: usize = 200_000;
/// Models, alarms, streams, plans of one device: what a board runs, four times over.
pub const EACH: usize = 64;
/// Results and events that are kept of a device: a page of each. 10,000 × 40 × 200 B is 80 MiB if all of them talk.
pub const LOG: usize = 20;
/// Longest text that is kept of a device's message, bytes.
pub const TEXT: usize = 300;
/// Largest packet from the broker: an envelope of 128 KiB, and room for its topic.
pub const PACKET_BYTES: u32 = 160 * 1024;
/// QoS 1 messages that the broker may have in flight to us.
pub const AT_ONCE: u16 = 1000;
/// Messages of ours that wait for the broker's answer: one for each device that is answered at a time.
pub const PENDING: usize = 256;
/// First and longest wait between two connects.
pub const RECONNECT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// First and longest pause after the broker could not take a message: 17 tries in a minute, and other messages wait no longer for it.
pub const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(4));
/// No retained message for so long after the broker answered the subscriptions: it has sent what it keeps. On a slow link three
/// times as long as the answer took.
pub const SETTLED: Duration = Duration::from_millis(400);
/// Devices that were asked who they are answer within this: `commands.jitter_s` (10 unless set), and a turn of theirs.
pub const ANSWERS: Duration = Duration::from_secs(12);
/// How long a broker keeps that question for a device that is away, s: it says who it is when it connects.
pub const ANSWERS_S: u32 = 12;
/// How long a table waits for the broker's retained messages at most: 200,000 devices × 3 messages at 5,000 a second.
pub const SETTLE_MOST: Duration = Duration::from_secs(120);
/// How long a message of ours waits for the broker's acknowledgement, over reconnects.
pub const ACK_MOST: Duration = Duration::from_secs(60);
/// How often the console sends what changed: twice a second is fast for eyes and slow for a browser.
pub const PUSH: Duration = Duration::from_millis(500);
/// How often rollouts are counted for a page: 10,000 devices take some milliseconds.
pub const COUNT: Duration = Duration::from_secs(2);
/// An idle stream of events gets a line this often, so that proxies keep it open.
pub const PUSH_IDLE: Duration = Duration::from_secs(15);
/// Open pages of a console.
pub const PAGES: usize = 64;
/// Connections to a console: six of a browser for each page.
pub const CONNECTIONS: usize = 6 * PAGES;
/// Rows in one event: 60 KiB, parsed in a few milliseconds, so that a page never stands still.
pub const ROWS: usize = 400;
/// Devices whose scores are followed at a time: each page of a device follows one.
pub const WATCHED: usize = 16;
/// Scores that are kept of a followed pipeline: five minutes at two a second.
pub const POINTS: usize = 600;
/// Largest request to the console: a signed command of 64 KiB, twice escaped.
pub const REQUEST_BYTES: usize = 256 * 1024;
/// A client has so long to send the head of a request.
pub const HEAD: Duration = Duration::from_secs(10);
/// A command lives so long unless the operator says otherwise, s.
pub const COMMAND_S: u64 = 3600;
