//! What must be remembered of commands so that none is done twice: ids, and of each issuer its key and the highest sequence
//! and versions that this key signed. Saved before the act, in two copies with checksums.
//!
//! What an issuer signed counts for its key alone: when a rotation gives the name another key, or none, nothing that the old
//! key signed holds up the keys that remain.
//!
//! A memory that cannot be read is waited for: nothing signed is obeyed and nothing is written over it. One that is damaged,
//! or gone although this device has run before, is begun again with distrust: each issuer's first command must echo the nonce.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::request::needs_signature;
use crate::{
    host::{Defence, Keep, Unloaded},
    limits,
};

const FILE: &str = "memory.json";
/// The desired state's state after `lower`: nothing that counts was looked at.
pub const LOWERED: &str = "none";

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It will be done.
    Accepted,
    /// It is being done.
    Running,
    /// It was done, and is well.
    Success,
    /// It could not be done.
    Failed,
    /// It will not be done.
    Rejected,
    /// It came too late.
    Expired,
    /// It was done, was not well, and was undone.
    RolledBack,
}

impl State {
    /// As the result says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Running => "running",
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::RolledBack => "rolled_back",
        }
    }

    /// Nothing comes after it.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Accepted | Self::Running)
    }
}

/// A command that was taken in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Known {
    /// Its id.
    pub id: String,
    /// Its type.
    pub kind: String,
    /// Of type and arguments.
    pub digest: String,
    /// What became of it.
    pub state: State,
    /// The same for people.
    pub text: String,
    /// The boot it began in.
    pub boot: String,
    /// The broker has its end.
    #[serde(default)]
    pub told: bool,
}

/// The desired state that was last looked at.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Wish {
    /// Highest version seen.
    pub version: u64,
    /// `none`, `applying`, `applied`, `rejected`, `rolled_back`.
    pub state: String,
    /// The same for people.
    pub text: String,
    /// The last one that was applied.
    #[serde(default)]
    pub applied: Option<Applied>,
}

/// A desired state that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Its version.
    pub version: u64,
    /// Of its remote layer.
    pub digest: String,
}

/// What one issuer's key signed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Issuer {
    /// The key, as its keyset writes it.
    key: String,
    /// Highest sequence of its commands; 0: none was obeyed.
    iseq: u64,
    /// Highest version of its desired states.
    desired: u64,
    /// Highest version of its words on the channel, and until when that one is believed, ms since 1970.
    channel: Option<(u64, i64)>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    commands: VecDeque<Known>,
    issuers: BTreeMap<String, Issuer>,
    wish: Wish,
    /// Digests of configurations that were put back, for desired states.
    put_back: VecDeque<String>,
    /// The memory was lost once: an issuer that is not in it must show that its command is fresh.
    #[serde(default)]
    lost: bool,
}

/// The memory.
pub struct Memory {
    keep: Keep,
    saved: Saved,
    /// It cannot be read so far.
    unread: Option<Unread>,
}

struct Unread {
    why: String,
    since_ns: u64,
    tried_ns: u64,
}

/// What opening the memory, or another try to read it, found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// What was saved, or nothing on a device that never ran.
    Memory,
    /// It cannot be read yet; why.
    Unread(String),
    /// It is lost and begun again, with distrust; why.
    Lost(String),
}

/// Whether a name stands for this key now.
pub type Believed<'a> = &'a dyn Fn(&str, &str) -> bool;

impl Memory {
    /// What was saved. `ran_before`: this device ran before, so it must have a memory.
    pub fn open(keep: Keep, ran_before: bool, now_ns: u64) -> (Self, Found) {
        let mut memory = Self { keep, saved: Saved::default(), unread: None };
        let found = memory.read(ran_before, now_ns);
        (memory, found)
    }

    fn read(&mut self, ran_before: bool, now_ns: u64) -> Found {
        let lost = |why: &str| (Saved { lost: true, ..Saved::default() }, Found::Lost(why.to_owned()));
        let (saved, found) = match self.keep.load_checked::<Saved>(FILE) {
            Ok(Some(saved)) => (saved, Found::Memory),
            Ok(None) if ran_before && Defence::Distrust.stands() => lost("is gone"),
            Ok(None) => (Saved::default(), Found::Memory),
            Err(Unloaded::Damaged) => lost("is damaged"),
            Err(Unloaded::Unreadable(why)) => {
                let since_ns = self.unread.as_ref().map_or(now_ns, |unread| unread.since_ns);
                if now_ns.saturating_sub(since_ns) < limits::UNREADABLE_WAIT.as_nanos() as u64 {
                    self.unread = Some(Unread { why: why.clone(), since_ns, tried_ns: now_ns });
                    return Found::Unread(why);
                }
                lost(&format!("cannot be read: {why}"))
            }
        };
        (self.saved, self.unread) = (saved, None);
        // A device that ran has one: were it first saved with the first command, its loss before that would not be seen.
        if let Err(why) = self.save() {
            tracing::warn!("{why}");
        }
        found
    }

    /// Tries again to read what could not be read; `None`: nothing is due.
    pub fn try_again(&mut self, now_ns: u64) -> Option<Found> {
        let tried_ns = self.unread.as_ref()?.tried_ns;
        let due = now_ns.saturating_sub(tried_ns) >= limits::UNREADABLE_TRY.as_nanos() as u64;
        due.then(|| self.read(true, now_ns))
    }

    /// Why it cannot be read so far.
    pub fn unread(&self) -> Option<&str> {
        self.unread.as_ref().map(|unread| unread.why.as_str())
    }

    /// A command by its id.
    pub fn known(&self, id: &str) -> Option<&Known> {
        self.saved.commands.iter().rev().find(|known| known.id == id)
    }

    /// Commands that were begun and did not come to an end.
    pub fn unfinished(&self) -> Vec<Known> {
        self.saved.commands.iter().filter(|known| !known.state.is_final()).cloned().collect()
    }

    /// Commands that ended, and nobody may have heard of it.
    pub fn untold(&self) -> Vec<Known> {
        let ended = self.saved.commands.iter().filter(|known| known.state.is_final() && !known.told);
        ended.filter(|known| needs_signature(&known.kind)).cloned().collect()
    }

    /// The broker has its end.
    pub fn told(&mut self, id: &str) {
        self.saved.commands.iter_mut().filter(|known| known.id == id).for_each(|known| known.told = true);
    }

    /// The highest sequence that this key of the issuer signed.
    pub fn issuer(&self, issuer: &str, key: &str) -> u64 {
        self.saved.issuers.get(issuer).filter(|known| known.key == key).map_or(0, |known| known.iseq)
    }

    /// What this issuer sent before may have been forgotten.
    pub fn distrusts(&self, issuer: &str, key: &str) -> bool {
        self.saved.lost && self.issuer(issuer, key) == 0
    }

    fn of(&mut self, issuer: &str, key: &str) -> &mut Issuer {
        let known = self.saved.issuers.entry(issuer.to_owned()).or_default();
        if known.key != key {
            *known = Issuer { key: key.to_owned(), ..Issuer::default() };
        }
        known
    }

    /// The highest version of a desired state, of the keys that are believed now.
    pub fn desired_high(&self, believed: Believed<'_>) -> u64 {
        self.of_believed(believed).map(|issuer| issuer.desired).max().unwrap_or(0)
    }

    /// This desired state is looked at.
    pub fn looked_at_desired(&mut self, issuer: &str, key: &str, version: u64) {
        let known = self.of(issuer, key);
        known.desired = version.max(known.desired);
    }

    /// The channel's newest word, of the keys that are believed now: its version, and until when it is believed.
    pub fn channel(&self, believed: Believed<'_>) -> Option<(u64, i64)> {
        self.of_believed(believed).filter_map(|issuer| issuer.channel).max()
    }

    /// The channel's word was heard.
    pub fn heard_channel(&mut self, issuer: &str, key: &str, word: (u64, i64)) {
        let known = self.of(issuer, key);
        known.channel = known.channel.max(Some(word));
    }

    fn of_believed<'a>(&'a self, believed: Believed<'a>) -> impl Iterator<Item = &'a Issuer> {
        let all = self.saved.issuers.iter();
        all.filter(move |(name, issuer)| believed(name, &issuer.key)).map(|(_, issuer)| issuer)
    }

    /// Where the key that signed the desired state's version is no longer believed, the version falls to what the keys that
    /// remain have signed, and that one may come again. Returns the version that fell.
    pub fn lower(&mut self, believed: Believed<'_>) -> Option<u64> {
        let (high, fell) = (self.desired_high(believed), self.saved.wish.version);
        let signed = self.saved.issuers.values().any(|issuer| issuer.desired == fell);
        if fell <= high || !signed {
            return None;
        }
        let text = format!("version {fell} was signed by a key that is no longer believed");
        // What it set is still in use.
        let applied = self.saved.wish.applied.take();
        self.saved.wish = Wish { version: high, state: LOWERED.into(), text, applied };
        Some(fell)
    }

    /// Remembers a new command, and its issuer's key and sequence.
    pub fn take(&mut self, known: Known, issuer: Option<(&str, &str, u64)>) {
        // A verified command may take an id that one without a signature had: ids stay unique.
        self.saved.commands.retain(|before| before.id != known.id);
        while self.saved.commands.len() >= limits::COMMANDS_KNOWN {
            // What changes nothing may come twice: it is forgotten first.
            let least = self.saved.commands.iter().position(|known| !needs_signature(&known.kind));
            self.saved.commands.remove(least.unwrap_or(0));
        }
        self.saved.commands.push_back(known);
        if let Some((issuer, key, iseq)) = issuer {
            let known = self.of(issuer, key);
            known.iseq = iseq.max(known.iseq);
        }
    }

    /// What became of a command.
    pub fn became(&mut self, id: &str, state: State, text: &str) {
        if let Some(known) = self.saved.commands.iter_mut().rev().find(|known| known.id == id) {
            known.state = state;
            known.told = false;
            known.text = text.chars().take(limits::RESULT_TEXT).collect();
        }
    }

    /// The desired state.
    pub fn wish(&self) -> &Wish {
        &self.saved.wish
    }

    /// Another desired state.
    pub fn wished(&mut self, version: u64, state: &str, text: &str) {
        let version = version.max(self.saved.wish.version);
        let applied = self.saved.wish.applied.take();
        self.saved.wish = Wish { version, state: state.into(), text: text.into(), applied };
    }

    /// The desired state of this version is in use: a remote layer with this digest.
    pub fn applied(&mut self, version: u64, digest: &str) {
        self.saved.wish.applied = Some(Applied { version, digest: digest.into() });
    }

    /// This configuration was put back once.
    pub fn was_put_back(&self, digest: &str) -> bool {
        self.saved.put_back.iter().any(|d| d == digest)
    }

    /// This configuration was put back.
    pub fn put_back(&mut self, digest: &str) {
        if !self.was_put_back(digest) {
            while self.saved.put_back.len() >= limits::PUT_BACK_KNOWN {
                self.saved.put_back.pop_front();
            }
            self.saved.put_back.push_back(digest.into());
        }
    }

    /// Onto the disk; never over what could not be read.
    pub fn save(&self) -> Result<(), String> {
        if let Some(why) = self.unread() {
            return Err(format!("remember the command: what was remembered before cannot be read: {why}"));
        }
        self.keep.save_checked(FILE, &self.saved).map_err(|why| format!("remember the command: {why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::keep::unreadable;

    const KEY: &str = "RWQ1";

    fn known(id: &str) -> Known {
        let (kind, digest) = ("restart".into(), "d".into());
        Known { id: id.into(), kind, digest, state: State::Running, text: String::new(), boot: "b".into(), told: false }
    }

    fn open(dir: &std::path::Path, ran_before: bool) -> (Memory, Found) {
        Memory::open(Keep::at(dir.join("control")), ran_before, 0)
    }

    /// A memory that knows sequence 9 of `ops`.
    fn saved(dir: &std::path::Path) {
        let (mut memory, found) = open(dir, false);
        assert_eq!(found, Found::Memory);
        memory.take(known("a"), Some(("ops", KEY, 9)));
        memory.save().expect("save");
    }

    fn tear(dir: &std::path::Path) {
        for copy in ["memory.json", "memory.json.bak"] {
            std::fs::write(dir.join("control").join(copy), "torn").expect("tear");
        }
    }

    #[test]
    fn what_was_taken_in_is_known_after_a_restart_and_a_lost_memory_distrusts() {
        let dir = tempfile::tempdir().expect("folder");
        let (mut memory, found) = open(dir.path(), false);
        assert!(found == Found::Memory && !memory.distrusts("ops", KEY));
        for n in 0..limits::COMMANDS_KNOWN + 3 {
            memory.take(known(&format!("c{n}")), Some(("ops", KEY, n as u64 + 1)));
        }
        memory.became("c5", State::Success, "done");
        memory.save().expect("save");
        let (memory, _) = open(dir.path(), true);
        assert!(memory.known("c0").is_none(), "the oldest leave");
        assert_eq!(memory.known("c5").map(|k| k.state), Some(State::Success));
        assert_eq!(memory.issuer("ops", KEY), limits::COMMANDS_KNOWN as u64 + 3);
        tear(dir.path());
        let (mut memory, found) = open(dir.path(), true);
        assert!(matches!(found, Found::Lost(_)) && memory.distrusts("ops", KEY));
        memory.take(known("x"), Some(("ops", KEY, 9)));
        assert!(!memory.distrusts("ops", KEY) && memory.distrusts("other", KEY));
    }

    #[test]
    fn unreadable_memory_is_waited_for_and_not_written_over() {
        let dir = tempfile::tempdir().expect("folder");
        saved(dir.path());
        let copies = ["memory.json", "memory.json.bak"].map(|copy| dir.path().join("control").join(copy));
        copies.iter().for_each(|path| unreadable::make(path));
        let (mut memory, found) = open(dir.path(), true);
        assert!(matches!(found, Found::Unread(_)) && memory.unread().is_some(), "{found:?}");
        assert!(memory.save().is_err(), "it is not written over");
        assert_eq!(memory.try_again(1), None, "not yet");
        let again_ns = limits::UNREADABLE_TRY.as_nanos() as u64;
        assert!(matches!(memory.try_again(again_ns), Some(Found::Unread(_))));
        copies.iter().for_each(|path| unreadable::mend(path));
        assert_eq!(memory.try_again(2 * again_ns), Some(Found::Memory));
        assert_eq!((memory.issuer("ops", KEY), memory.unread()), (9, None));
    }

    #[test]
    fn memory_unreadable_for_a_minute_is_distrusted() {
        let dir = tempfile::tempdir().expect("folder");
        saved(dir.path());
        let copies = ["memory.json", "memory.json.bak"].map(|copy| dir.path().join("control").join(copy));
        copies.iter().for_each(|path| unreadable::make(path));
        let (mut memory, _) = open(dir.path(), true);
        let found = memory.try_again(limits::UNREADABLE_WAIT.as_nanos() as u64);
        assert!(matches!(found, Some(Found::Lost(_))), "{found:?}");
        assert!(memory.unread().is_none() && memory.distrusts("ops", KEY));
    }

    #[test]
    fn deleted_memory_of_a_device_that_ran_is_distrusted_and_a_new_devices_is_not() {
        let dir = tempfile::tempdir().expect("folder");
        saved(dir.path());
        std::fs::remove_dir_all(dir.path().join("control")).expect("delete");
        let (memory, found) = open(dir.path(), true);
        assert!(matches!(found, Found::Lost(_)) && memory.distrusts("ops", KEY), "{found:?}");
        // The distrust stays until the issuer has shown itself, also when the device stops before that.
        assert!(open(dir.path(), true).0.distrusts("ops", KEY));
        let fresh = tempfile::tempdir().expect("folder");
        assert!(!open(fresh.path(), false).0.distrusts("ops", KEY));
        assert_eq!(open(fresh.path(), true).1, Found::Memory, "it was saved at the first start");
    }

    #[test]
    fn rotation_lowers_what_the_dropped_key_signed_and_nothing_else() {
        let dir = tempfile::tempdir().expect("folder");
        let (mut memory, _) = open(dir.path(), false);
        let one = |name: &str, key: &str| (name, key) == ("ops", KEY);
        let both = |name: &str, key: &str| one(name, key) || (name, key) == ("stolen", "RWQ2");
        memory.looked_at_desired("ops", KEY, 7);
        memory.wished(7, "applied", "");
        memory.heard_channel("ops", KEY, (3, 1000));
        assert_eq!(
            (memory.desired_high(&both), memory.channel(&both), memory.lower(&both)),
            (7, Some((3, 1000)), None)
        );
        memory.looked_at_desired("stolen", "RWQ2", 1 << 40);
        memory.wished(1 << 40, "applied", "");
        memory.heard_channel("stolen", "RWQ2", (1 << 40, i64::MAX));
        assert_eq!((memory.desired_high(&both), memory.lower(&both)), (1 << 40, None));
        assert_eq!((memory.desired_high(&one), memory.channel(&one)), (7, Some((3, 1000))));
        assert_eq!(memory.lower(&one), Some(1 << 40));
        assert_eq!((memory.wish().version, memory.wish().state.as_str()), (7, LOWERED));
        // The same name with another key begins at nothing.
        memory.take(known("a"), Some(("ops", KEY, 1 << 40)));
        assert_eq!((memory.issuer("ops", KEY), memory.issuer("ops", "RWQ3")), (1 << 40, 0));
        memory.take(known("b"), Some(("ops", "RWQ3", 1)));
        assert_eq!(memory.issuer("ops", "RWQ3"), 1);
    }
}
