//! What other programs are told beside the device's own topics. Pure: makes topics and payloads of the configuration; the link
//! publishes them.

pub mod homeassistant;
