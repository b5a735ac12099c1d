//! Scenarios: each name is a promise, each plays the real binary in the simulated world of `rig`. Every message that any
//! subscriber sees in any of them is checked against its schema (`rig::sub`).

mod alarms;
mod broker;
mod bundles;
mod bus;
mod clock;
mod commands;
mod configuration;
mod contract;
mod damage;
mod disk;
mod docs;
mod drain;
mod erase;
mod faults;
mod field;
mod gpio;
mod installs;
mod kills;
mod link;
mod measurements;
mod models;
mod outage;
mod providers;
mod quality;
mod remote;
mod replay;
mod retained;
mod road;
mod sensor;
mod service;
mod state;
mod tools;
mod transfers;
mod trials;
mod workers;
