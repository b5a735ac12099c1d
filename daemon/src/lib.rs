//! Kentledge turns sensor signals into decisions on the spot. Data walks one way, left to right:
//!
//! ```text
//! ports ×N ─ frames ─▶ signal ─ windows ─▶ infer ─ records ─▶ outbox ─ cursor ─▶ link ─▶ broker
//!         (sheds old)         (sheds old)   │ └▶ output    RAM tail,        MQTT 5
//!                                 socket + shared memory    sled body
//!                                           │
//!                                     worker process: the only place ONNX Runtime is loaded
//! ```
//!
//! Alarms on channels are evaluated in `signal`, alarms on scores in `infer`; both drive `output` without a queue between.
//! Rooms stand side by side and share only the words in `flow`; `system::run` joins them. `docs/architecture.md` is the map.

pub mod alarm;
pub mod bus;
pub mod cli;
pub mod config;
pub mod control;
pub mod error;
pub mod flow;
pub mod host;
pub mod infer;
pub mod integrations;
pub mod limits;
pub mod link;
pub mod model;
pub mod outbox;
pub mod output;
pub mod provision;
pub mod report;
pub mod samples;
pub mod selftest;
pub mod signal;
pub mod source;
pub mod system;
