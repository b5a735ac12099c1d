//! Decides which keys and messages are trusted: signatures and the bounds of what they cover, the memory of what was signed,
//! and `dn/channel`.

use super::{
    CommandState, Control, Outcome,
    action::{Action, Call, Keys, Left, OnError},
    memory::Found,
    refusal::{Refusal, Why},
    request,
};
use crate::{
    flow::{Clk, event::Kind, order::Arrived},
    host::Defence,
    limits,
};

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
        let keys = self.keys.trusted.as_ref().map_err(|why| Refusal(Why::BadSignature, why.clone()))?;
        match keys.signer(&signed.text, &signed.minisig).map_err(|why| Refusal(Why::BadSignature, why.into()))? {
            name if name == signed.issuer => Ok(keys.public(&name).unwrap_or_default().to_owned()),
            name => Err(Refusal(Why::BadSignature, format!("issuer is `{}`, but `{name}` signed", signed.issuer))),
        }
    }

    /// The public key of this name in the keyset in use, as minisign writes it.
    pub(super) fn key_of(&self, name: &str) -> Option<&str> {
        self.keys.trusted.as_ref().ok()?.public(name)
    }

    /// Whether a sequence or version is within what may follow the last one.
    pub(super) fn not_ahead(&self, what: &str, number: u64, known: u64) -> Result<(), Refusal> {
        let most = version_most(known, self.now_ms(), self.now.stamp.clk);
        if number > most {
            let text = format!("{what} {number} is too far above {known}: at most {most} may follow it now");
            return Err(Refusal(Why::Invalid, text));
        }
        Ok(())
    }

    /// Whether the time of signing is not after now, as far as this device knows the time.
    pub(super) fn not_issued_ahead(&self, issued_ms: Option<i64>) -> Result<(), Refusal> {
        let ahead_ms = issued_ms.unwrap_or(0).saturating_sub(self.now_ms());
        if self.now.stamp.clk == Clk::Sync && ahead_ms > limits::ISSUED_AHEAD_MS {
            let (ahead_s, most_s) = (ahead_ms / 1000, limits::ISSUED_AHEAD_MS / 1000);
            let text = format!("`issued` is {ahead_s} s ahead of this device's clock; at most {most_s} are allowed");
            return Err(Refusal(Why::Invalid, text));
        }
        Ok(())
    }

    /// Takes up the memory as it was read. Publishes an event when it is unreadable or lost.
    pub(super) fn take_up_memory(&mut self, left: &mut Left, ran_before: bool) -> Found {
        let memory = std::mem::replace(&mut left.memory, Ok(None));
        let found = self.memory.take_up(memory, ran_before, self.now_ns());
        if !matches!(found, Found::Unread(_)) {
            self.save(OnError::Log("until it is saved, its loss is not detected".into()));
        }
        found
    }

    pub(super) fn tell_memory(&mut self, found: &Found) {
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

    /// The memory was read again.
    pub(super) fn reread(&mut self, mut left: Left) {
        let found = self.take_up_memory(&mut left, true);
        if matches!(found, Found::Unread(_)) {
            return;
        }
        tracing::info!("the memory of commands was read again");
        self.tell_memory(&found);
        let Left { trial, going, audited, .. } = left;
        self.audited = audited;
        self.take_up_commands(trial.ok().flatten().as_ref(), &going);
        self.audited.clear();
        self.report();
        self.plans_came_later();
    }

    /// Reads an unreadable keyset again from time to time.
    pub(super) fn look_at_keys(&mut self) {
        let now_ns = self.now_ns();
        let due = now_ns.saturating_sub(self.keys_ns) >= limits::UNREADABLE_TRY.as_nanos() as u64;
        if self.keys.trusted.is_err() && self.rules.keyset && due {
            self.keys_ns = now_ns;
            self.act(Action::ReadKeys);
        }
    }

    pub(super) fn keys_read(&mut self, keys: Keys) {
        if keys.trusted.is_ok() {
            tracing::info!("the keyset can be read again");
        }
        self.keys = keys;
    }

    /// `keyset.update`: the next keyset is in use, or was rejected.
    pub(super) fn keys_taken(&mut self, call: Call, taken: Result<(Keys, u64), String>) {
        let outcome = match taken {
            Err(why) => Outcome::rejected(Why::BadSignature, why),
            Ok((keys, version)) => {
                self.keys = keys;
                self.lower_versions();
                let text = format!("keyset {version} is in use");
                self.event(Kind::ConfigChanged, "keys", &text);
                Outcome::new(CommandState::Success, text)
            }
        };
        self.finish(call, &outcome);
    }

    /// Lowers versions that a key signed that is no longer in the keyset: they must not block the remaining keys.
    pub(super) fn lower_versions(&mut self) {
        let Ok(keys) = self.keys.trusted.clone() else { return };
        if self.memory.unread().is_some() {
            return;
        }
        if let Some(version) = self.memory.lower(&|name, key| keys.public(name) == Some(key)) {
            let high = self.memory.wish().version;
            let text = format!(
                "desired state {version} was signed by a key that is no longer believed: versions above {high} count again, \
                 and what it set stays until one comes"
            );
            self.event(Kind::ConfigChanged, "config", &text);
            self.save(OnError::Log("a restart lowers the version of the desired state again".into()));
            self.report();
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
            let text = format!("a restart forgets dn/channel version {}", channel.version);
            self.save(OnError::Log(text));
        }
        self.act(Action::Newest(channel.models));
    }

    /// Reports once when the newest `dn/channel` message expires.
    pub(super) fn look_at_channel(&mut self) {
        // Without a message of a trusted key there is nothing that could expire.
        let word = self.memory.channel(&|name, key| self.key_of(name) == Some(key));
        let stale = word.is_some_and(|(_, expires_ms)| self.now_ms() >= expires_ms);
        if stale == self.stale_told {
            return;
        }
        self.stale_told = stale;
        if stale {
            let text =
                "dn/channel is out of date: the newest releases are unknown; check whether updates are held back";
            self.event(Kind::ModelUpdateStale, "models", text);
        }
        self.act(Action::ShowStale(stale));
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
