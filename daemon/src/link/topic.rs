//! One table of topics.

/// Topics of one device.
#[derive(Debug, Clone)]
pub struct Topics {
    up: String,
}

impl Topics {
    /// `kl/{site}/{device}/up/…`
    pub fn new(site: &str, device: &str) -> Self {
        Self { up: format!("kl/{site}/{device}/up/") }
    }

    /// Retained, last will: online, stopping, offline.
    pub fn state(&self) -> String {
        self.stream("state")
    }

    /// Retained: who this is and what it can.
    pub fn birth(&self) -> String {
        self.stream("birth")
    }

    /// Retained: unit, type and rate of a stream.
    pub fn meta(&self, stream: &str) -> String {
        self.stream(&format!("meta/{stream}"))
    }

    /// Records: `p/pump` → `kl/{site}/{device}/up/p/pump`.
    pub fn stream(&self, stream: &str) -> String {
        format!("{}{stream}", self.up)
    }
}
