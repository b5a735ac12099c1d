//! The memory of commands, so that none is executed twice: ids, and for each issuer its key and the highest sequence
//! and versions that this key signed. Saved before a command is executed, in two copies with checksums.
//!
//! Sequences and versions count for the key that signed them: after a rotation that replaces or drops a key, nothing that
//! the old key signed blocks the remaining keys.
//!
//! While the memory cannot be read, no signed command is executed and the file is not overwritten. If it is damaged, or
//! missing on a device that ran before, a new one begins with distrust: each issuer's first command must echo the nonce.
//! The memory itself does no I/O: `MemoryFile` reads and writes it.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::{command_state::CommandState, plans, refusal::Why};
use crate::{
    host::{Defence, Keep, Unloaded},
    limits,
};

const FILE: &str = "memory.json";
/// The desired state's state after `lower`: no version of a trusted key was handled.
pub const LOWERED: &str = "none";

/// An accepted command.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Known {
    /// Id of the command.
    pub id: String,
    /// The type of the command.
    pub kind: String,
    /// Digest of type and arguments.
    pub digest: String,
    pub state: CommandState,
    /// The name of the key that signed it; empty: none did, or an earlier version accepted it.
    #[serde(default)]
    pub issuer: String,
    /// The text of the result, for people.
    pub text: String,
    /// Why it was rejected, `Why::word`; empty: it was not, or an earlier version saved it.
    #[serde(default)]
    pub why: String,
    /// The boot in which it began.
    pub boot: String,
    /// The broker acknowledged its final result.
    #[serde(default, rename = "told")]
    pub acked: bool,
}

/// The desired state that was handled last.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Wish {
    /// Highest version seen.
    pub version: u64,
    /// `none`, `applying`, `applied`, `rejected`, `rolled_back`.
    pub state: String,
    /// The text of the result, for people.
    pub text: String,
    /// The last one that was applied.
    #[serde(default)]
    pub applied: Option<Applied>,
}

/// A desired state that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Version of the desired state.
    pub version: u64,
    /// Digest of its remote layer.
    pub digest: String,
}

/// The highest numbers that one issuer's key signed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Issuer {
    /// The public key, as the keyset writes it.
    key: String,
    /// Highest sequence of its commands; 0: none was executed.
    iseq: u64,
    /// Highest version of its desired states.
    desired: u64,
    /// Highest version of its `dn/channel` messages, and the expiry of that one, ms since 1970.
    channel: Option<(u64, i64)>,
}

/// What is saved of the memory.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Saved {
    commands: VecDeque<Known>,
    issuers: BTreeMap<String, Issuer>,
    wish: Wish,
    /// Digests of configurations that were rolled back; a desired state does not try them again.
    put_back: VecDeque<String>,
    /// The memory was lost once: an issuer that it does not hold must prove that its command is fresh.
    #[serde(default)]
    lost: bool,
    /// Plans, gates and halts.
    #[serde(default)]
    plans: plans::Saved,
}

#[cfg(test)]
impl Saved {
    /// Ids and types of the commands.
    pub fn ids(&self) -> impl Iterator<Item = (&str, &str)> {
        self.commands.iter().map(|known| (known.id.as_str(), known.kind.as_str()))
    }

    /// The highest sequence of an issuer.
    pub fn highest(&self, issuer: &str) -> u64 {
        self.issuers.get(issuer).map_or(0, |known| known.iseq)
    }
}

/// The memory of commands.
#[derive(Debug)]
pub struct Memory {
    /// Whether commands of this type are signed.
    is_signed: fn(&str) -> bool,
    saved: Saved,
    /// The saved memory cannot be read so far.
    unread: Option<Unread>,
}

/// The file of the memory.
#[derive(Debug, Clone)]
pub struct MemoryFile(pub Keep);

impl MemoryFile {
    /// What the previous process saved.
    ///
    /// # Errors
    /// The file cannot be read now, or is damaged.
    pub fn load(&self) -> Result<Option<Saved>, Unloaded> {
        self.0.load_checked(FILE)
    }

    /// Writes the memory, in two copies.
    ///
    /// # Errors
    /// The disk is not writable.
    pub fn save(&self, saved: &Saved) -> Result<(), String> {
        self.0.save_checked(FILE, saved).map_err(|why| format!("save the memory of commands: {why}"))
    }
}

#[derive(Debug)]
struct Unread {
    why: String,
    since_ns: u64,
    tried_ns: u64,
}

/// The result of reading the memory.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// The saved memory, or an empty one on a device that never ran.
    Memory,
    /// The memory cannot be read yet; why.
    Unread(String),
    /// The memory is lost; a new one begins with distrust; why.
    Lost(String),
}

/// Whether the keyset in use holds this key under this name.
pub type Believed<'a> = &'a dyn Fn(&str, &str) -> bool;

impl Memory {
    /// An empty one.
    pub fn new(is_signed: fn(&str) -> bool) -> Self {
        Self { is_signed, saved: Saved::default(), unread: None }
    }

    /// Takes up what was read. `ran_before`: this device ran before, so it must have a memory. What follows is to be saved,
    /// also at the first start: otherwise a loss before the first command would not be detected.
    pub fn take_up(&mut self, loaded: Result<Option<Saved>, Unloaded>, ran_before: bool, now_ns: u64) -> Found {
        let empty = || Saved { lost: true, plans: plans::Saved::lost(), ..Saved::default() };
        let lost = |why: &str| (empty(), Found::Lost(why.to_owned()));
        let (saved, found) = match loaded {
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
        found
    }

    /// Whether an unreadable memory is to be read again now.
    pub fn is_due(&self, now_ns: u64) -> bool {
        let due = |at_ns: u64| now_ns.saturating_sub(at_ns) >= limits::UNREADABLE_TRY.as_nanos() as u64;
        self.unread.as_ref().is_some_and(|unread| due(unread.tried_ns))
    }

    /// Why it cannot be read so far.
    pub fn unread(&self) -> Option<&str> {
        self.unread.as_ref().map(|unread| unread.why.as_str())
    }

    /// A command by its id.
    pub fn known(&self, id: &str) -> Option<&Known> {
        self.saved.commands.iter().rev().find(|known| known.id == id)
    }

    /// Commands without a final result.
    pub fn unfinished(&self) -> Vec<Known> {
        self.saved.commands.iter().filter(|known| !known.state.is_final()).cloned().collect()
    }

    /// Signed commands with a final result that the broker has not acknowledged.
    pub fn unacked(&self) -> Vec<Known> {
        let ended = self.saved.commands.iter().filter(|known| known.state.is_final() && !known.acked);
        ended.filter(|known| (self.is_signed)(&known.kind)).cloned().collect()
    }

    /// The broker acknowledged the final result of this command.
    pub fn acked(&mut self, id: &str) {
        self.saved.commands.iter_mut().filter(|known| known.id == id).for_each(|known| known.acked = true);
    }

    /// The highest sequence that this key of the issuer signed.
    pub fn issuer(&self, issuer: &str, key: &str) -> u64 {
        self.saved.issuers.get(issuer).filter(|known| known.key == key).map_or(0, |known| known.iseq)
    }

    /// The memory was lost, and this issuer has not sent a verified command since.
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

    /// The highest version of a desired state that a trusted key signed.
    pub fn desired_high(&self, believed: Believed<'_>) -> u64 {
        self.of_believed(believed).map(|issuer| issuer.desired).max().unwrap_or(0)
    }

    /// Records the version of a verified desired state.
    pub fn looked_at_desired(&mut self, issuer: &str, key: &str, version: u64) {
        let known = self.of(issuer, key);
        known.desired = version.max(known.desired);
    }

    /// The newest `dn/channel` of the trusted keys: its version, and its expiry in ms.
    pub fn channel(&self, believed: Believed<'_>) -> Option<(u64, i64)> {
        self.of_believed(believed).filter_map(|issuer| issuer.channel).max()
    }

    /// Records a verified `dn/channel` message: its version, and its expiry in ms.
    pub fn heard_channel(&mut self, issuer: &str, key: &str, word: (u64, i64)) {
        let known = self.of(issuer, key);
        known.channel = known.channel.max(Some(word));
    }

    fn of_believed<'a>(&'a self, believed: Believed<'a>) -> impl Iterator<Item = &'a Issuer> {
        let all = self.saved.issuers.iter();
        all.filter(move |(name, issuer)| believed(name, &issuer.key)).map(|(_, issuer)| issuer)
    }

    /// Lowers the desired state's version if its key is no longer trusted: to the highest version that the remaining keys
    /// signed, which then may come again. Returns the version that was lowered.
    pub fn lower(&mut self, believed: Believed<'_>) -> Option<u64> {
        let (high, fell) = (self.desired_high(believed), self.saved.wish.version);
        let signed = self.saved.issuers.values().any(|issuer| issuer.desired == fell);
        if fell <= high || !signed {
            return None;
        }
        let text = format!("version {fell} was signed by a key that is no longer believed");
        // The layer that it set is still in use.
        let applied = self.saved.wish.applied.take();
        self.saved.wish = Wish { version: high, state: LOWERED.into(), text, applied };
        Some(fell)
    }

    /// Adds a new command, and raises its issuer's sequence.
    pub fn take(&mut self, known: Known, issuer: Option<(&str, &str, u64)>) {
        // A verified command may reuse the id of an unsigned command: ids stay unique.
        self.saved.commands.retain(|before| before.id != known.id);
        while self.saved.commands.len() >= limits::COMMANDS_KNOWN {
            // Forget commands without a signature first: they change nothing, so executing one twice does no harm.
            let least = self.saved.commands.iter().position(|known| !(self.is_signed)(&known.kind));
            self.saved.commands.remove(least.unwrap_or(0));
        }
        self.saved.commands.push_back(known);
        if let Some((issuer, key, iseq)) = issuer {
            let known = self.of(issuer, key);
            known.iseq = iseq.max(known.iseq);
        }
    }

    /// Sets the state of a command.
    pub fn became(&mut self, id: &str, state: CommandState, text: &str) {
        if let Some(known) = self.saved.commands.iter_mut().rev().find(|known| known.id == id) {
            known.state = state;
            known.acked = false;
            known.text = text.chars().take(limits::RESULT_TEXT).collect();
        }
        self.saved.plans.became(id, state, text);
    }

    /// A command that became `rejected` was so for this reason.
    pub fn rejected(&mut self, id: &str, why: Why) {
        if let Some(known) = self.saved.commands.iter_mut().rev().find(|known| known.id == id) {
            known.why = why.word().into();
        }
    }

    /// A command that did nothing is forgotten.
    pub fn forget(&mut self, id: &str) {
        self.saved.commands.retain(|known| known.id != id);
    }

    /// Plans, gates and halts.
    pub fn plans(&self) -> &plans::Saved {
        &self.saved.plans
    }

    /// The same, to be changed.
    pub fn plans_mut(&mut self) -> &mut plans::Saved {
        &mut self.saved.plans
    }

    /// The desired state that was handled last.
    pub fn wish(&self) -> &Wish {
        &self.saved.wish
    }

    /// Sets version, state and text of the desired state.
    pub fn wished(&mut self, version: u64, state: &str, text: &str) {
        let version = version.max(self.saved.wish.version);
        let applied = self.saved.wish.applied.take();
        self.saved.wish = Wish { version, state: state.into(), text: text.into(), applied };
    }

    /// Records that the desired state of this version is in use: a remote layer with this digest.
    pub fn applied(&mut self, version: u64, digest: &str) {
        self.saved.wish.applied = Some(Applied { version, digest: digest.into() });
    }

    /// Whether this configuration was rolled back.
    pub fn was_put_back(&self, digest: &str) -> bool {
        self.saved.put_back.iter().any(|d| d == digest)
    }

    /// Records that this configuration was rolled back.
    pub fn put_back(&mut self, digest: &str) {
        if !self.was_put_back(digest) {
            while self.saved.put_back.len() >= limits::PUT_BACK_KNOWN {
                self.saved.put_back.pop_front();
            }
            self.saved.put_back.push_back(digest.into());
        }
    }

    /// What is to be saved now.
    ///
    /// # Errors
    /// A file that could not be read is never overwritten.
    pub fn to_save(&self) -> Result<Saved, String> {
        match self.unread() {
            Some(why) => Err(format!("save the memory of commands: the saved memory cannot be read: {why}")),
            None => Ok(self.saved.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::keep::unreadable;

    const KEY: &str = "RWQ1";

    fn known(id: &str) -> Known {
        let (kind, digest) = ("restart".into(), "d".into());
        Known {
            id: id.into(),
            kind,
            digest,
            state: CommandState::Running,
            issuer: String::new(),
            text: String::new(),
            why: String::new(),
            boot: "b".into(),
            acked: false,
        }
    }

    fn file(dir: &std::path::Path) -> MemoryFile {
        MemoryFile(Keep::at(dir.join("control")))
    }

    /// Reads the memory as a start does, and saves it where that is allowed.
    fn open(dir: &std::path::Path, ran_before: bool) -> (Memory, Found) {
        let mut memory = Memory::new(|_| true);
        let found = memory.take_up(file(dir).load(), ran_before, 0);
        let _ = save(&memory, dir);
        (memory, found)
    }

    fn save(memory: &Memory, dir: &std::path::Path) -> Result<(), String> {
        memory.to_save().and_then(|saved| file(dir).save(&saved))
    }

    /// Reads an unreadable memory again; `None`: no attempt is due.
    fn try_again(memory: &mut Memory, dir: &std::path::Path, now_ns: u64) -> Option<Found> {
        memory.is_due(now_ns).then(|| memory.take_up(file(dir).load(), true, now_ns))
    }

    /// Saves a memory with sequence 9 of `ops`.
    fn saved(dir: &std::path::Path) {
        let (mut memory, found) = open(dir, false);
        assert_eq!(found, Found::Memory);
        memory.take(known("a"), Some(("ops", KEY, 9)));
        save(&memory, dir).expect("save");
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
        memory.became("c5", CommandState::Success, "done");
        save(&memory, dir.path()).expect("save");
        let (memory, _) = open(dir.path(), true);
        assert!(memory.known("c0").is_none(), "the oldest leave");
        assert_eq!(memory.known("c5").map(|k| k.state), Some(CommandState::Success));
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
        assert!(save(&memory, dir.path()).is_err(), "it is not written over");
        assert_eq!(try_again(&mut memory, dir.path(), 1), None, "not yet");
        let again_ns = limits::UNREADABLE_TRY.as_nanos() as u64;
        assert!(matches!(try_again(&mut memory, dir.path(), again_ns), Some(Found::Unread(_))));
        copies.iter().for_each(|path| unreadable::mend(path));
        assert_eq!(try_again(&mut memory, dir.path(), 2 * again_ns), Some(Found::Memory));
        assert_eq!((memory.issuer("ops", KEY), memory.unread()), (9, None));
    }

    #[test]
    fn memory_unreadable_for_a_minute_is_distrusted() {
        let dir = tempfile::tempdir().expect("folder");
        saved(dir.path());
        let copies = ["memory.json", "memory.json.bak"].map(|copy| dir.path().join("control").join(copy));
        copies.iter().for_each(|path| unreadable::make(path));
        let (mut memory, _) = open(dir.path(), true);
        let found = try_again(&mut memory, dir.path(), limits::UNREADABLE_WAIT.as_nanos() as u64);
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
        // The distrust persists until the issuer sent a command with the nonce, also over a restart.
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
        // The same name with another key begins at 0.
        memory.take(known("a"), Some(("ops", KEY, 1 << 40)));
        assert_eq!((memory.issuer("ops", KEY), memory.issuer("ops", "RWQ3")), (1 << 40, 0));
        memory.take(known("b"), Some(("ops", "RWQ3", 1)));
        assert_eq!(memory.issuer("ops", "RWQ3"), 1);
    }
}
