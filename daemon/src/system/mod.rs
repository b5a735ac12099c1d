//! The whole system: `run` joins the rooms, `connect` builds what each stage works with, `crew` holds the threads.

pub(crate) mod connect;
pub mod crew;
mod retained;
pub mod run;
pub mod streams;

#[cfg(test)]
mod cost_tests;
#[cfg(test)]
mod datasheets_more_tests;
#[cfg(test)]
mod datasheets_tests;
#[cfg(test)]
mod road_tests;
#[cfg(test)]
mod scale_tests;
