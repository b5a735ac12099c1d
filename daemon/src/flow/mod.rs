//! The ground floor: the words that travel between rooms, and the queues they travel in. Imports no room.

pub mod alarm;
pub mod beat;
pub mod board;
pub mod count;
pub mod escalation;
pub mod event;
pub mod frame;
pub mod kept;
pub mod lane;
pub mod meter;
pub mod order;
pub mod record;
pub mod sample;
pub mod samples;
pub mod score;
#[cfg(test)]
pub mod spoilt;
pub mod stamp;
pub mod verdict;
pub mod window;

pub use frame::{Arrival, Fault, Flaw, FrameBatch, SourceId};
pub use kept::{Finished, Kept};
pub use record::{Class, Draft, Phase, Retain, Sink, StreamId};
pub use sample::{Quality, Why};
pub use score::{Classes, Direction, Scored};
pub use stamp::{Clk, Stamp};
pub use window::{Window, WindowTag};
