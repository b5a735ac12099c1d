//! Decides which keys and messages are trusted: the keyset and its successors, signatures and the bounds of what they cover,
//! the memory of what was signed, and `dn/channel`.

use super::{
    Control, Outcome, State,
    memory::Found,
    request::{self, Refusal, Why},
};
use crate::{
    config::Config,
    flow::{Clk, event::Kind, order::Arrived},
    host::Defence,
    limits,
    model::{
        keyset::{Keyset, Role},
        store::Store,
    },
};

/// The keyset in use, and why a successor is not in use.
pub(super) fn keyset(config: &Config, store: &mut Store) -> (Result<Keyset, String>, Option<String>) {
    match &config.commands.keyset {
        Some(path) => match store.keyset(path) {
            Ok((keyset, trouble)) => (Ok(keyset), trouble),
            Err(why) => (Err(why), None),
        },
        None => (Err("no keyset is installed (commands.keyset)".into()), None),
    }
}

/// The highest sequence or version that may follow `known`: a counter grows by a bounded step, a time (s or ms since 1970) up
/// to now. So one message of a stolen key cannot use up all numbers, and the time in ms always remains usable.
fn version_most(known: u64, now_ms: i64, clk: Clk) -> u64 {
    if !Defence::VersionBound.stands() {
        return limits::ISEQ_MAX;
    }
    let ahead_ms = if clk == Clk::Sync { limits::ISSUED_AHEAD_MS } else { limits::CLOCK_BEHIND_MS };
    let time_ms = u64::try_from(now_ms.saturating_add(ahead_ms)).unwrap_or(0);
    time_ms.max(known.saturating_add(limits::VERSION_JUMP)).min(limits::ISEQ_MAX)
}

impl Control {
    /// Verifies a signature. Returns the issuer's key, as the keyset writes it.
    pub(super) fn verify(&self, signed: &request::Signed) -> Result<String, Refusal> {
        let keyset = self.keyset.as_ref().map_err(|why| Refusal(Why::BadSignature, why.clone()))?;
        let signer = keyset.signer(Role::Command, signed.text.as_bytes(), &signed.minisig);
        match signer.map_err(|why| Refusal(Why::BadSignature, why))? {
            name if name == signed.issuer => Ok(keyset.public(name).unwrap_or_default().to_owned()),
            name => Err(Refusal(Why::BadSignature, format!("issuer is `{}`, but `{name}` signed", signed.issuer))),
        }
    }

    /// The public key of this name in the keyset in use, as minisign writes it.
    pub(super) fn key_of(&self, name: &str) -> Option<&str> {
        self.keyset.as_ref().ok()?.public(name)
    }

    /// Whether a sequence or version is within what may follow the last one.
    pub(super) fn not_ahead(&self, what: &str, number: u64, known: u64) -> Result<(), Refusal> {
        let most = version_most(known, self.now_ms(), self.setup.clock.now().clk);
        if number > most {
            let text = format!("{what} {number} is too far above {known}: at most {most} may follow it now");
            return Err(Refusal(Why::Invalid, text));
        }
        Ok(())
    }

    /// Whether the time of signing is not after now, as far as this device knows the time.
    pub(super) fn not_issued_ahead(&self, issued_ms: Option<i64>) -> Result<(), Refusal> {
        let now = self.setup.clock.now();
        let ahead_ms = issued_ms.unwrap_or(0).saturating_sub(self.now_ms());
        if now.clk == Clk::Sync && ahead_ms > limits::ISSUED_AHEAD_MS {
            let (ahead_s, most_s) = (ahead_ms / 1000, limits::ISSUED_AHEAD_MS / 1000);
            let text = format!("`issued` is {ahead_s} s ahead of this device's clock; at most {most_s} are allowed");
            return Err(Refusal(Why::Invalid, text));
        }
        Ok(())
    }

    /// Publishes an event when the memory of commands is unreadable or lost.
    pub(super) fn tell_memory(&mut self, found: Found) {
        match found {
            Found::Memory => {}
            Found::Unread(why) => {
                let text = format!(
                    "the memory of commands cannot be read: {why}; it is tried again, and no signed command is obeyed until then"
                );
                self.event(Kind::DiskFailed, "commands", &text);
            }
            Found::Lost(why) => {
                let text = format!(
                    "the memory of commands {why}; it begins again, and each issuer's next one must echo the nonce"
                );
                self.event(Kind::StoreDamaged, "commands", &text);
            }
        }
    }

    /// Reads the memory of commands and the keyset again, if they could not be read.
    pub(super) fn look_at_memory(&mut self, now_ns: u64) {
        let found = self.memory.try_again(now_ns);
        if let Some(found) = found.filter(|found| !matches!(found, Found::Unread(_))) {
            tracing::info!("the memory of commands was read again");
            self.tell_memory(found);
            let trial = self.setup.trials.found().ok().flatten();
            self.take_up_commands(trial.as_ref());
            self.report();
        }
        let due = now_ns.saturating_sub(self.keyset_ns) >= limits::UNREADABLE_TRY.as_nanos() as u64;
        if self.keyset.is_err() && self.setup.config.commands.keyset.is_some() && due {
            self.keyset_ns = now_ns;
            (self.keyset, self.keys_trouble) = keyset(&self.setup.config, &mut self.models.store);
            if self.keyset.is_ok() {
                tracing::info!("the keyset can be read again");
            }
        }
    }

    /// Lowers versions that a key signed that is no longer in the keyset: they must not block the remaining keys.
    pub(super) fn lower_versions(&mut self) {
        if self.keyset.is_err() || self.memory.unread().is_some() {
            return;
        }
        let Self { memory, keyset, .. } = self;
        let fell = memory.lower(&|name, key| keyset.as_ref().is_ok_and(|keys| keys.public(name) == Some(key)));
        if let Some(version) = fell {
            let high = self.memory.wish().version;
            let text = format!(
                "desired state {version} was signed by a key that is no longer believed: versions above {high} count again, \
                 and what it set stays until one comes"
            );
            self.event(Kind::ConfigChanged, "config", &text);
            if let Err(why) = self.memory.save() {
                tracing::error!("{why}; a restart lowers the version again");
            }
            self.report();
        }
    }

    pub(super) fn keys_for_models(&self) -> Result<&Keyset, String> {
        match &self.keys_trouble {
            Some(why) => Err(format!("nothing is installed: {why}")),
            None => self.keyset.as_ref().map_err(Clone::clone),
        }
    }

    /// `dn/channel`: the newest sequence of each model; retained, and valid for a limited time.
    pub(super) fn channel(&mut self, to: &str, arrived: &Arrived) {
        let channel = match request::guarded(|| request::channel(to, &arrived.payload)) {
            Ok(channel) => channel,
            Err(Refusal(_, why)) => return tracing::warn!("reject dn/channel message: {why}"),
        };
        if let Some(why) = self.memory.unread() {
            // The message is retained, and comes again with the next connection.
            return tracing::warn!("reject dn/channel message: the memory of commands cannot be read: {why}");
        }
        let known = self.memory.channel(&|name, key| self.key_of(name) == Some(key)).map_or(0, |(version, _)| version);
        let believed = self.verify(&channel.signed).and_then(|key| {
            self.not_issued_ahead(Some(channel.issued_ms))?;
            self.not_ahead("version", channel.version, known).map(|()| key)
        });
        let key = match believed {
            Ok(key) => key,
            Err(Refusal(_, why)) => return tracing::warn!("reject dn/channel message: {why}"),
        };
        if channel.version > known {
            self.memory.heard_channel(&channel.signed.issuer, &key, (channel.version, channel.expires_ms));
            if let Err(why) = self.memory.save() {
                tracing::error!("{why}; a restart forgets dn/channel version {}", channel.version);
            }
        }
        for (model, seq) in &channel.models {
            let held = self.models.store.line(model).held().map_or(0, |held| held.seq);
            if *seq > held.max(self.floor(model).unwrap_or(u64::MAX)) {
                tracing::info!(model, seq, "a newer model is there");
            }
        }
    }

    /// `keyset.update`: the next keyset, with its signatures.
    pub(super) fn update_keyset(&mut self, text: &str, minisigs: &[String]) -> Outcome {
        let now = match &self.keyset {
            Ok(keyset) => keyset.clone(),
            Err(why) => return Outcome::rejected(Why::Invalid, why.clone()),
        };
        match self.models.store.take_keyset(&now, text.as_bytes(), minisigs) {
            Err(why) => Outcome::rejected(Why::BadSignature, why),
            Ok(next) => {
                let text = format!("keyset {} is in use", next.version);
                self.keyset = Ok(next);
                self.keys_trouble = None;
                self.lower_versions();
                self.event(Kind::ConfigChanged, "keys", &text);
                self.show_models();
                Outcome::new(State::Success, text)
            }
        }
    }

    /// Reports once when the newest `dn/channel` message expires.
    pub(super) fn look_at_channel(&mut self) {
        // Without a message of a trusted key there is nothing that could expire.
        let word = self.memory.channel(&|name, key| self.key_of(name) == Some(key));
        let stale = word.is_some_and(|(_, expires_ms)| self.now_ms() >= expires_ms);
        if stale && !std::mem::replace(&mut self.models.stale_told, true) {
            let text =
                "dn/channel is out of date: the newest releases are unknown; check whether updates are held back";
            self.event(Kind::ModelUpdateStale, "models", text);
            self.show_models();
        }
        if !stale && std::mem::take(&mut self.models.stale_told) {
            self.show_models();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_bounded_by_the_clock_and_by_a_step_and_the_time_in_ms_always_goes_on() {
        let now_ms = 1_795_166_043_120i64;
        let most = |known| version_most(known, now_ms, Clk::Sync);
        let (now_ms, soon) = (now_ms as u64, now_ms as u64 + limits::ISSUED_AHEAD_MS as u64);
        for version in [1, 500, now_ms / 1000, now_ms, soon] {
            assert!(version <= most(0), "{version}");
        }
        for bad in [soon + 1, now_ms * 1000, limits::ISEQ_MAX] {
            assert!(bad > most(0), "{bad}");
        }
        assert_eq!(most(now_ms), now_ms + limits::VERSION_JUMP, "another message, another step");
        // After any message of a stolen key, the time in ms is higher five minutes later.
        assert!(version_most(most(7), now_ms as i64 + limits::ISSUED_AHEAD_MS, Clk::Sync) > most(7));
        assert!(most(limits::ISEQ_MAX) == limits::ISEQ_MAX);
        // A clock that is years behind does not reject an issuer whose versions are times in ms.
        assert!(version_most(0, crate::host::clock::BUILT_S * 1000, Clk::Unset) > now_ms);
    }
}
