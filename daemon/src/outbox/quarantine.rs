//! Stores that were set aside: what still checks in them goes into the store in use. A file in the quarantine says that it
//! is not done; it is there from before the store is moved until nothing more can be had, whatever comes between.
//!
//! ```text
//! quarantine-N/salvage.json, two copies:
//!    { oldest, records, saved, tries, taken: [[first, last], …] }      places as numbers, see `key`
//! ```

use std::{collections::BTreeSet, path::Path};

use serde::{Deserialize, Serialize};

use super::{key::Key, packed::Packed, salvage::Salvage, store::Store};
use crate::{host::Keep, limits};

const FILE: &str = "salvage.json";
/// Segments that are left free for messages that could not be read yet: 128 MiB of the smallest messages are fewer.
const MARGIN: u32 = 1 << 16;

/// What is still to be done for one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Todo {
    /// What lies before this place was acknowledged.
    oldest: u64,
    /// Records it held when it was last synced.
    records: u64,
    /// Of those taken over so far.
    saved: u64,
    /// How often something in it could not be read.
    tries: u32,
    /// Places that were taken over, in ranges.
    taken: Vec<(u64, u64)>,
}

impl Todo {
    /// Nothing was taken over yet.
    pub fn new(oldest: u64, records: u64) -> Self {
        Self { oldest, records, ..Self::default() }
    }

    /// Writes it down in the store's folder.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn save(&self, folder: &Path) -> Result<(), String> {
        let keep = Keep::at(folder.to_owned());
        keep.save_checked(FILE, self).map_err(|why| format!("mark {} as not salvaged: {why}", folder.display()))
    }

    /// It is as done as it can be.
    fn done(folder: &Path) -> Result<(), String> {
        let keep = Keep::at(folder.to_owned());
        let removed = keep.remove(&format!("{FILE}.bak")).and_then(|()| keep.remove(FILE));
        removed.map_err(|why| format!("mark {} as salvaged: {why}", folder.display()))
    }
}

/// Whether something may still be had from it. What cannot be known is taken for unsalvaged.
pub fn is_unsalvaged(folder: &Path) -> bool {
    [FILE.to_owned(), format!("{FILE}.bak")].iter().any(|name| !matches!(folder.join(name).try_exists(), Ok(false)))
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Records taken over now.
    pub saved: u64,
    /// It is done: so many records are missing.
    pub missing: Option<u64>,
    /// Why it is not, or what could not be read.
    pub why: Option<String>,
}

/// Takes over what is not taken yet, a commit for each MiB. `held`: what was read before sled opened it; `counts`: a
/// failure to read counts, for the disk works.
///
/// # Errors
/// The store in use does not take it.
pub fn salvage(
    folder: &Path,
    held: Option<Salvage>,
    store: &mut Store,
    (bytes_max, counts): (u64, bool),
    alive: &dyn Fn(),
) -> Result<Outcome, String> {
    let mut todo = match Keep::at(folder.to_owned()).load_checked::<Todo>(FILE) {
        Ok(Some(todo)) => todo,
        Ok(None) => return Ok(Outcome { saved: 0, missing: None, why: Some(format!("{FILE} cannot be read")) }),
        // Damaged in both copies: all that checks is taken, also what was delivered.
        Err(_) => Todo::default(),
    };
    let mut taken: BTreeSet<u64> = todo.taken.iter().flat_map(|(first, last)| *first..=*last).collect();
    let files = Salvage::search(folder, todo.oldest, alive);
    let found = held.unwrap_or_default().join(files);
    let last = found.last().unwrap_or(todo.oldest);
    let margin = if found.unread.is_some() { MARGIN } else { 1 };
    store.begin_at(Key::at(last).segment.saturating_add(margin));
    let (before, mut unread, mut full) = (todo.saved, found.unread.clone(), false);
    let (mut bytes, mut records, mut places) = (0, 0, Vec::new());
    let known = taken.clone();
    let mut keep = |store: &mut Store, todo: &mut Todo, places: &mut Vec<u64>, records: &mut u64| {
        store.commit()?;
        taken.extend(std::mem::take(places));
        todo.saved += std::mem::take(records);
        todo.taken = ranges(&taken);
        todo.save(folder)
    };
    for (place, message) in found.messages(|place| known.contains(&place)) {
        match message {
            Ok(message) => {
                let packed = Packed::new(&message)?;
                store.restore(place, &packed)?;
                bytes += packed.size();
                records += message.items.len() as u64;
                places.push(place);
            }
            Err(why) => unread = unread.or(Some(why)),
        }
        if bytes > 1 << 20 {
            alive();
            keep(store, &mut todo, &mut places, &mut records)?;
            bytes = 0;
            full = store.bytes() > bytes_max;
            if full {
                break;
            }
        }
    }
    if !places.is_empty() {
        keep(store, &mut todo, &mut places, &mut records)?;
    }
    let saved = todo.saved - before;
    if full {
        return Ok(Outcome { saved, missing: None, why: Some("there is no room for more now".into()) });
    }
    if unread.is_some() {
        todo.tries += u32::from(counts);
        if todo.tries < limits::SALVAGE_TRIES {
            todo.save(folder)?;
            return Ok(Outcome { saved, missing: None, why: unread });
        }
    }
    Todo::done(folder)?;
    Ok(Outcome { saved, missing: Some(todo.records.saturating_sub(todo.saved)), why: unread })
}

/// Numbers as ranges of adjoining ones.
fn ranges(all: &BTreeSet<u64>) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for n in all {
        match out.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*n) => *last = *n,
            _ => out.push((*n, *n)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Sealed;

    #[test]
    fn salvage_that_found_no_room_goes_on_later_and_takes_nothing_twice() {
        let dir = tempfile::tempdir().expect("folder");
        let (aside, new) = (dir.path().join("quarantine-1"), dir.path().join("new/store"));
        std::fs::create_dir_all(&new).expect("folder");
        let packed = |seq| Packed::new(&Sealed::sample(seq, 60_000)).expect("packed");
        let mut store = Store::open(&aside, &|| {}).expect("open");
        store.insert(&(1..=40).map(packed).collect::<Vec<_>>()).expect("insert");
        store.commit().expect("commit");
        drop(store);
        let records = 40;
        Todo::new(0, records).save(&aside).expect("marker");
        let mut store = Store::open(&new, &|| {}).expect("open");
        let first = salvage(&aside, None, &mut store, (1 << 20, true), &|| {}).expect("salvaged");
        assert!(first.missing.is_none() && first.saved > 0 && first.saved < records, "{first:?}");
        assert!(is_unsalvaged(&aside));
        // What was delivered meanwhile does not come again.
        let keys: Vec<Key> = std::iter::successors(store.next(None), |key| store.next(Some(*key))).collect();
        store.remove(keys).expect("remove");
        store.commit().expect("commit");
        let rest = salvage(&aside, None, &mut store, (1 << 30, true), &|| {}).expect("salvaged");
        assert_eq!((rest.saved, rest.missing), (records - first.saved, Some(0)), "{rest:?}");
        assert!(!is_unsalvaged(&aside) && store.records() == rest.saved);
    }
}
