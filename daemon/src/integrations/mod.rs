//! Messages for other programs, beside the device's own topics. Pure: makes topics and payloads of the configuration; the link
//! publishes them.

pub mod homeassistant;
