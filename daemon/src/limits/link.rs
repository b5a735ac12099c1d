//! What is bounded at the connection to the broker: packets, waits, suspects.

use std::time::Duration;

/// Messages in flight at once. 100 × 120 KiB would be 12 MB, but RAM is bounded by the tail, which holds them.
pub const IN_FLIGHT: u16 = 100;
/// Largest packet we accept from a broker, and advertise.
pub const PACKET_BYTES: u32 = 64 * 1024;
/// Keep-alive unless configured: with the client's ping time-out a dead peer is noticed within 2 × 15 s + 5 s.
pub const KEEP_ALIVE_S: u64 = 15;
/// While an outage of this device's own network is short the next connect comes within this (full jitter): 7 tries a
/// second on average, and none of them reaches a broker.
pub const RECONNECT_MIN: Duration = Duration::from_millis(300);
/// How long that is: a broker's restart or a router's.
pub const RECONNECT_SHORT: Duration = Duration::from_secs(120);
/// After the broker went away all its devices return within this at the soonest (full jitter): 10,000 devices are 2,000
/// connections a second.
pub const RECONNECT_SPREAD: Duration = Duration::from_secs(5);
/// A first connect so soon after the machine's start is spread in the same way: power may have returned to a whole plant. Boards are
/// up within two minutes.
pub const JUST_BOOTED: Duration = Duration::from_secs(120);
/// Longest wait between two connects.
pub const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// Another client uses our client id: each connect ends the other's session. Ours waits so long, doubling.
pub const TWIN_WAIT: Duration = Duration::from_secs(30);
/// The longest of these waits.
pub const TWIN_WAIT_MAX: Duration = Duration::from_secs(900);
/// A connection that the broker accepts and closes within this is short-lived.
pub const SOON: Duration = Duration::from_secs(5);
/// So many of them in a row are reported.
pub const SOON_TIMES: u32 = 3;
/// After so many of them each doubles the longest wait before the next connect.
pub const SOON_SPARED: u32 = 6;
/// A message that was sent within this before the broker closed may be why: twice a satellite's round trip, and room.
pub const BLAMED_WITHIN: Duration = Duration::from_secs(5);
/// Messages that ended connections and are remembered: 64 × 100 B.
pub const SUSPECTS: usize = 64;
/// Messages held back because they ended two connections: with `STORED_MESSAGE_BYTES` each they take half of what is read
/// ahead of the backlog.
pub const SUSPECTS_HELD: usize = 8;
/// A message that the broker cannot take is tried again for so long: a node of a cluster is replaced in less.
pub const REFUSED_MOST: Duration = Duration::from_secs(3600);
/// One of them is tried a third time when the connection has held for so long.
pub const SUSPECT_AGAIN: Duration = Duration::from_secs(20);
/// Handled orders that are remembered by their digest: four times what may be in flight to us.
pub const ORDERS_SEEN: usize = 64;
/// Topic aliases that are given, of those that the broker takes: a device has a dozen streams, and each is compared with every topic.
pub const TOPIC_ALIASES: usize = 32;
/// Subscriptions in one packet: AWS IoT Core takes no more.
pub const FILTERS: usize = 8;
/// What happens often is logged once, and then as a number this often.
pub const SAY_AGAIN: Duration = Duration::from_secs(60);
/// Slots of the broker's receive maximum that the backlog leaves to alarms and live data.
pub const LIVE_SLOTS: usize = 2;
/// Unsent bytes in the kernel at most, before an alarm: half a second at 1 Mbit/s.
pub const UNSENT_BYTES: u32 = 64 * 1024;
/// How often a connection is looked at when nothing happens on it.
pub const LINK_TICK: Duration = Duration::from_millis(500);
/// A broker that answers pings but acknowledges nothing for so long, or two keep-alives, is left: its queue may be full,
/// and a slow one of 64 KiB/s has taken 2 MiB by then.
pub const ACK_WAIT: Duration = Duration::from_secs(30);
/// Outages of at least this length are reported.
pub const OUTAGE_TOLD: Duration = Duration::from_secs(1);
/// How often the clock is looked at while TLS waits for it.
pub const CLOCK_WAIT: Duration = Duration::from_secs(1);
/// How often the time is saved, where it is known to be right: 8 KiB an hour.
pub const CLOCK_SAVE: Duration = Duration::from_secs(3600);
/// To reach a broker, with proxy, TLS and WebSocket; and its answer to CONNECT, at first.
pub const CONNECT: Duration = Duration::from_secs(10);
/// Its answer, after connections on which it did not answer in time: a broker that makes 40 sessions a second has made those of 2,000
/// devices in 50 s.
pub const CONNECT_MOST: Duration = Duration::from_secs(60);
/// Brokers in `mqtt.url`.
pub const BROKERS: usize = 8;
/// Addresses of one name that are tried.
pub const ADDRESSES: usize = 8;
/// Each of them gets at least so long: a lost SYN is repeated after one second.
pub const CONNECT_ADDRESS: Duration = Duration::from_secs(2);
/// Bytes of `mqtt.topic_prefix`; topics of 256 bytes with it are within what brokers take.
pub const TOPIC_PREFIX_BYTES: usize = 128;
/// What is read at once of a connection; the largest packet that we accept takes four of them.
pub const READ_CHUNK: usize = 16 * 1024;
/// The head of a proxy's or a WebSocket server's answer.
pub const HTTP_HEAD_BYTES: usize = 8 * 1024;
/// MQTT session expiry: a device off for a week gets the commands that wait for it.
pub const SESSION_EXPIRY_S: u32 = 7 * 24 * 3600;
/// How long a broker keeps the session of an operator's tool that is gone, s. Not 0: a queue of RabbitMQ for a session without a life of
/// its own lives on one node. When that node is gone, the broker refuses every message of every device that this queue would have got.
pub const TOOL_SESSION_S: u32 = 60;
/// Bytes of the topic prefix that Home Assistant listens below. With two names of 64 bytes, a channel of 64 and the fixed parts a topic is
/// below 400 bytes, of 65535.
pub const DISCOVERY_PREFIX_BYTES: usize = 128;
