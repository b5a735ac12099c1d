//! Whom and what is believed: the keyset and the one that follows it, signatures and the bounds of what they cover, the
//! memory of what was signed, and the channel's word on what is newest.

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

/// The keyset in use, and what is wrong with those that followed the first one.
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
/// to now. So one message of a stolen key cannot use up all numbers, and the time in ms goes on whatever came before.
fn version_most(known: u64, now_ms: i64, clk: Clk) -> u64 {
    if !Defence::VersionBound.stands() {
        return limits::ISEQ_MAX;
    }
    let ahead_ms = if clk == Clk::Sync { limits::ISSUED_AHEAD_MS } else { limits::CLOCK_BEHIND_MS };
    let time_ms = u64::try_from(now_ms.saturating_add(ahead_ms)).unwrap_or(0);
    time_ms.max(known.saturating_add(limits::VERSION_JUMP)).min(limits::ISEQ_MAX)
}

impl Control {
    /// Checks a signature. Returns the issuer's key, as the keyset writes it.
    pub(super) fn verify(&self, signed: &request::Signed) -> Result<String, Refusal> {
        let keyset = self.keyset.as_ref().map_err(|why| Refusal(Why::BadSignature, why.clone()))?;
        let signer = keyset.signer(Role::Command, signed.text.as_bytes(), &signed.minisig);
        match signer.map_err(|why| Refusal(Why::BadSignature, why))? {
            name if name == signed.issuer => Ok(keyset.public(name).unwrap_or_default().to_owned()),
            name => Err(Refusal(Why::BadSignature, format!("issuer is `{}`, but `{name}` signed", signed.issuer))),
        }
    }

    /// The key that a name stands for now, as the keyset writes it.
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

    /// Reports what became of the memory of commands.
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

    /// Tries again to read what could not be read: the memory of commands, the keyset.
    pub(super) fn look_at_memory(&mut self, now_ns: u64) {
        let found = self.memory.try_again(now_ns);
        if let Some(found) = found.filter(|found| !matches!(found, Found::Unread(_))) {
            tracing::info!("the memory of commands is looked at again");
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

    /// What a key signed that is no longer believed does not hold up the keys that are.
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
                tracing::error!("{why}");
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

    /// `dn/channel`: the newest sequence of each model, retained, and true for a short time only.
    pub(super) fn channel(&mut self, to: &str, arrived: &Arrived) {
        let channel = match request::guarded(|| request::channel(to, &arrived.payload)) {
            Ok(channel) => channel,
            Err(Refusal(_, why)) => return tracing::warn!("reject dn/channel message: {why}"),
        };
        if let Some(why) = self.memory.unread() {
            // It is retained, and comes again with the next connection.
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
                tracing::error!("{why}");
            }
        }
        for (model, seq) in &channel.models {
            let held = self.models.store.line(model).held().map_or(0, |held| held.seq);
            if *seq > held.max(self.floor(model).unwrap_or(u64::MAX)) {
                tracing::info!(model, seq, "a newer model is there");
            }
        }
    }

    /// `keyset.update`: the keyset that follows, with its signatures.
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

    /// Freshness: what is known of the newest models goes out of date.
    pub(super) fn look_at_channel(&mut self) {
        // Without a word of a key that is believed nothing is known, and nothing is out of date.
        let word = self.memory.channel(&|name, key| self.key_of(name) == Some(key));
        let stale = word.is_some_and(|(_, expires_ms)| self.now_ms() >= expires_ms);
        if stale && !std::mem::replace(&mut self.models.stale_told, true) {
            let text = "the channel's word on the newest models is out of date; is somebody holding updates back?";
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
        for good in [1, 500, now_ms / 1000, now_ms, soon] {
            assert!(good <= most(0), "{good}");
        }
        for bad in [soon + 1, now_ms * 1000, limits::ISEQ_MAX] {
            assert!(bad > most(0), "{bad}");
        }
        assert_eq!(most(now_ms), now_ms + limits::VERSION_JUMP, "another message, another step");
        // Whatever one message of a stolen key said, the time in ms is above it five minutes later.
        assert!(version_most(most(7), now_ms as i64 + limits::ISSUED_AHEAD_MS, Clk::Sync) > most(7));
        assert!(most(limits::ISEQ_MAX) == limits::ISEQ_MAX);
        // A clock that is years behind keeps nobody out who counts in ms.
        assert!(version_most(0, crate::host::clock::BUILT_S * 1000, Clk::Unset) > now_ms);
    }
}
