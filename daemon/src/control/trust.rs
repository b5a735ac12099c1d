//! Whom and what is believed of models: the keyset and the one that follows it, and the channel's word on what is newest.

use super::{
    Control, Outcome, State,
    request::{self, Refusal, Why},
};
use crate::{
    flow::{event::Kind, order::Arrived},
    model::keyset::Keyset,
};

impl Control {
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
            Err(Refusal(_, why)) => return tracing::warn!("the channel's word is refused: {why}"),
        };
        if let Err(Refusal(_, why)) = self.verify(&channel.signed) {
            return tracing::warn!("the channel's word is refused: {why}");
        }
        if let Err(why) = self.models.store.heard_channel(channel.version, channel.expires_ms) {
            tracing::error!("{why}");
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
                self.event(Kind::ConfigChanged, "keys", &text);
                self.show_models();
                Outcome::new(State::Success, text)
            }
        }
    }

    /// Freshness: what is known of the newest models goes out of date.
    pub(super) fn look_at_channel(&mut self) {
        let Some(expires_ms) = self.models.store.channel_expires_ms() else { return };
        let stale = self.now_ms() >= expires_ms;
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
