//! The files of the store: one for each record, written whole or not at all (`host/keep.rs`), so a kill or a power cut leaves
//! those that were written and no half of another. What is in RAM alone is the index, which is read from the files at the start.
//!
//! ```text
//! STATE/samples/  w-TIME-DIGEST.kls    a window: ms since 1970 (0: not known), and the beginning of its digest
//!                 l-DIGEST.kls         a label: the digest of what it is about, so a later one replaces it
//!                 pull/                what a pull sends: links to such files, or to a tape
//!                 pull.json            the pull, and the budget; two copies
//! ```

use std::{fs, io, path::PathBuf, sync::Arc};

use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    choose::Chosen,
    index::{Episode, Index, Key, Labelled, Window},
    record::{self, At, Described, Head, hex},
};
use crate::{
    flow::{
        Kept, Stamp,
        meter::Meters,
        samples::{About, Feedback, Refused, Said},
    },
    host::{Keep, clock::rfc3339_ms},
    limits,
};

/// The store.
pub struct Store {
    keep: Keep,
    folder: PathBuf,
    index: Index,
    max_bytes: u64,
    days: u64,
    /// `SITE/DEVICE`, and the boot.
    names: (String, String),
    meters: Arc<Meters>,
    /// A write failed, and that was logged.
    failed: bool,
}

/// How it is made.
pub struct Place {
    /// `STATE/samples`.
    pub folder: PathBuf,
    /// Bytes at most.
    pub max_bytes: u64,
    /// Days that windows without a label are kept.
    pub days: u64,
    /// `SITE/DEVICE`, and the boot.
    pub names: (String, String),
    /// What it counts.
    pub meters: Arc<Meters>,
}

const DAY_MS: u64 = 86_400_000;

impl Store {
    /// Reads what is there. Damaged files are removed and counted; one that cannot be read now stays, and is not known.
    pub fn open(place: Place, beat: &dyn Fn()) -> Self {
        let Place { folder, max_bytes, days, names, meters } = place;
        let keep = Keep::at(folder.clone());
        let mut store = Self { keep, folder, index: Index::default(), max_bytes, days, names, meters, failed: false };
        for name in store.keep.names() {
            beat();
            match kind(&name) {
                Some(Kind::Unfinished) => drop(store.keep.remove(&name)),
                Some(Kind::Record) => store.read(name),
                None => {}
            }
        }
        store.show();
        store
    }

    fn read(&mut self, name: String) {
        let bytes = match self.keep.load_patiently(&name) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return,
            Err(why) => return tracing::error!("read samples/{name}: {why}; it is left as it is"),
        };
        let size = on_disk(bytes.len());
        let entry = record::decode(&bytes).and_then(|(head, _)| entry(&name, head, size));
        match entry {
            Some(Entry::Window(key, window)) => self.index.add(key, window),
            Some(Entry::Label(label)) => self.index.add_label(name, label),
            None => {
                self.meters.samples.damaged.add(1);
                tracing::error!("samples/{name} is damaged; it is removed");
                self.remove_file(&name);
            }
        }
    }

    /// What is known of the records.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Bytes that the store may take: what is configured, and no more than its share of the partition.
    fn quota(&self) -> u64 {
        let share = statvfs(&self.folder).map_or(u64::MAX, |fs| fs.blocks().saturating_mul(fs.fragment_size()));
        self.max_bytes.min(share / 100 * limits::SAMPLES_SHARE_PERCENT)
    }

    /// Keeps a window. What has no room, or cannot be written, is counted.
    pub fn add(&mut self, pipeline: &Described, chosen: &Chosen) {
        let Chosen { finished, class, around } = chosen;
        let (values, win) = record::values(&finished.window.values);
        let ms = finished.window.tag.last.wall_ms.map_or(0, |ms| ms.max(0) as u64);
        let key = (ms, format!("w-{ms:014}-{}.kls", &win[..32]));
        let mut around = around.clone();
        if self.index.get(&key).is_some_and(|kept| !is_news(kept, *class, &mut around)) {
            return;
        }
        let names = (self.names.0.as_str(), self.names.1.as_str());
        let lies = around.as_ref().map(|(at, episodes)| (*at, episodes.as_slice()));
        let head = record::window(names, pipeline, finished, (*class, &win), lies);
        let bytes = record::encode(&head, &values);
        let size = on_disk(bytes.len());
        let Some(leave) = self.index.room(*class, size, self.quota()) else {
            self.meters.samples.full.add(1);
            return;
        };
        self.evict(&leave);
        let raised = matches!(around, Some((At::Raised, _)));
        let episodes = around.map_or(Vec::new(), |(_, episodes)| episodes);
        let window = Window { win, class: *class, pipeline: pipeline.name.clone(), episodes, raised, bytes: size };
        let written = self.free(size).and_then(|()| self.keep.save(&key.1, &bytes));
        if self.took(written.map_err(|why| why.to_string())) {
            self.index.add(key, window);
        } else {
            self.meters.samples.disk.add(1);
        }
        self.show();
    }

    /// Whether that worked; the first failure is logged, and the first success after it.
    fn took(&mut self, written: Result<(), String>) -> bool {
        match &written {
            Err(why) if !self.failed => tracing::error!("keep a window: {why}; windows are not kept until this ends"),
            Ok(()) if self.failed => tracing::info!("windows are kept again"),
            _ => {}
        }
        self.failed = written.is_err();
        written.is_ok()
    }

    fn free(&self, more: u64) -> io::Result<()> {
        let free =
            statvfs(&self.folder).map_or(u64::MAX, |fs| fs.blocks_available().saturating_mul(fs.fragment_size()));
        if free < more + limits::SAMPLES_LEAVE_BYTES {
            return Err(io::Error::other(format!("{} MiB are free on the disk, too little", free >> 20)));
        }
        Ok(())
    }

    fn evict(&mut self, keys: &[Key]) {
        for key in keys {
            let Some((worth, labels)) = self.index.remove(key) else { continue };
            self.meters.samples.evicted[worth].add(1);
            self.remove_file(&key.1);
            for label in labels {
                self.index.remove_label(&label);
                self.remove_file(&label);
            }
        }
    }

    fn remove_file(&self, name: &str) {
        // Without a sync: a file that is back after a power cut is known again, and leaves again.
        match fs::remove_file(self.folder.join(name)) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => tracing::error!("remove samples/{name}: {why}"),
            _ => {}
        }
    }

    /// Removes what is too old.
    pub fn expire(&mut self, now_ms: Option<i64>) {
        let now_ms = now_ms.map_or(0, |ms| ms.max(0) as u64);
        let old = self.index.older(now_ms.saturating_sub(self.days * DAY_MS));
        if !old.is_empty() {
            self.evict(&old);
            self.show();
        }
    }

    /// Saves a label. It is on the disk, with the windows that it is about, when this returns success.
    pub fn feedback(&mut self, feedback: &Feedback, command: &str, now: Stamp) -> Said {
        let (key, window, episode) = match self.target(&feedback.about) {
            Ok(found) => found,
            Err(why) => return Said::Refused(Refused::Invalid, why),
        };
        let (lineage, score) = match self
            .keep
            .load_patiently(&key.1)
            .map(|bytes| bytes.as_deref().and_then(record::decode).map(|(h, _)| h))
        {
            Ok(Some(Head::Window { lineage, score, .. })) => (lineage, score),
            Ok(_) => return Said::Failed(format!("samples/{} is damaged", key.1)),
            Err(why) => return Said::Failed(format!("read samples/{}: {why}; send the label again", key.1)),
        };
        let file = label_file(&feedback.about, episode.as_ref());
        let before = self.index.labels().get(&file);
        let same = |label: &Labelled| {
            (&label.label, &label.by, &label.note) == (&feedback.label, &feedback.by, &feedback.note)
        };
        let mut result = json!({
            "label": feedback.label, "win": format!("sha256:{}", window.win), "pipeline": window.pipeline,
            "lineage": lineage, "score": score, "alarm": episode.as_ref().map(|e| &e.alarm), "id": episode.as_ref().map(|e| &e.id),
            "windows": self.about(&window.win, episode.as_ref()),
        });
        if before.is_some_and(same) {
            return Said::Done("the label is stored already".into(), result);
        }
        if before.is_none() && self.index.labels().len() >= limits::LABELS_MAX {
            let text = format!(
                "{} labels are stored, and no more fit; fetch them and erase, or raise none",
                limits::LABELS_MAX
            );
            return Said::Refused(Refused::Invalid, text);
        }
        let text = match before {
            Some(before) => {
                result["replaced"] = json!({"label": before.label, "by": before.by});
                "the label is stored and replaces an earlier one"
            }
            None => "the label is stored",
        };
        match self.write_label(&file, feedback, command, (&window, episode, &lineage), now) {
            Ok(()) => Said::Done(text.into(), result),
            Err(why) => Said::Failed(format!("write the label: {why}; send it again")),
        }
    }

    /// The window that something is about, and the episode; or the reason why not.
    fn target(&self, about: &About) -> Result<(Key, Window, Option<Episode>), String> {
        match about {
            About::Window(win) => match self.index.window(win) {
                Some((key, window)) => Ok((key.clone(), window.clone(), None)),
                None => Err(format!("no window with the digest sha256:{win} is kept")),
            },
            About::Alarm(alarm, id) => match self.index.raised(alarm, id.as_deref()) {
                Some((key, window, episode)) => Ok((key.clone(), window.clone(), Some(episode.clone()))),
                None => Err(match id {
                    Some(id) => format!("no window of episode `{id}` of alarm `{alarm}` is kept"),
                    None => format!("no window of an episode of alarm `{alarm}` is kept"),
                }),
            },
        }
    }

    fn is_about(&self, key: &Key, window: &Window, episode: Option<&Episode>) -> bool {
        self.index.is(key, &window.win, episode)
    }

    /// Windows that a label is about.
    fn about(&self, win: &str, episode: Option<&Episode>) -> usize {
        self.index.about(win, episode)
    }

    fn write_label(
        &mut self,
        file: &str,
        feedback: &Feedback,
        command: &str,
        (window, episode, lineage): (&Window, Option<Episode>, &Value),
        now: Stamp,
    ) -> io::Result<()> {
        let head = json!({
            "kind": "label", "label": feedback.label, "wins": [format!("sha256:{}", window.win)],
            "alarm": episode.as_ref().map(|e| &e.alarm), "id": episode.as_ref().map(|e| &e.id),
            "pipeline": window.pipeline, "lineage": lineage, "by": feedback.by, "note": feedback.note,
            "device": self.names.0, "command": command, "ts": now.wall_ms.map(rfc3339_ms),
        });
        let bytes = record::encode(&head, &[]);
        let size = on_disk(bytes.len());
        // Where nothing may be removed for it, it is written too: labels are few, and the reason for the whole store.
        let leave = self.index.room_for_label(size, self.quota()).into_iter();
        let leave: Vec<Key> = leave.filter(|key| !self.is_about(key, window, episode.as_ref())).collect();
        self.evict(&leave);
        self.keep.save(file, &bytes)?;
        let Feedback { label, by, note, .. } = feedback.clone();
        self.index.add_label(
            file.to_owned(),
            Labelled { label, wins: vec![window.win.clone()], episode, by, note, bytes: size },
        );
        self.show();
        Ok(())
    }

    /// Shows how much there is.
    fn show(&self) {
        use std::sync::atomic::Ordering::Relaxed;
        for (shown, n) in self.meters.samples.windows.iter().zip(self.index.counts()) {
            shown.store(n, Relaxed);
        }
        self.meters.samples.labels.store(self.index.labels().len() as u64, Relaxed);
        self.meters.samples.bytes.store(self.index.bytes(), Relaxed);
    }
}

/// The name of the file of a label: what it is about.
fn label_file(about: &About, episode: Option<&Episode>) -> String {
    let text = match (about, episode) {
        (_, Some(episode)) => format!("alarm {} {}", episode.alarm, episode.id),
        (About::Window(win), None) => format!("window {win}"),
        (About::Alarm(alarm, id), None) => format!("alarm {alarm} {}", id.as_deref().unwrap_or("")),
    };
    format!("l-{}.kls", &hex(&Sha256::digest(text))[..32])
}

enum Kind {
    Record,
    Unfinished,
}

/// What a file in the folder is; `None`: none of the store's.
fn kind(name: &str) -> Option<Kind> {
    let own = name.starts_with("w-") || name.starts_with("l-");
    match name {
        name if own && name.ends_with(".kls") => Some(Kind::Record),
        name if own && name.ends_with(".kls.new") => Some(Kind::Unfinished),
        _ => None,
    }
}

enum Entry {
    Window(Key, Window),
    Label(Labelled),
}

fn entry(name: &str, head: Head, bytes: u64) -> Option<Entry> {
    let digest = |text: &str| text.strip_prefix("sha256:").map(str::to_owned);
    Some(match head {
        Head::Window { win, class, pipeline, alarms, at, .. } => {
            let ms = name.get(2..16)?.parse().ok()?;
            let (win, class) = (digest(&win)?, Kept::of(&class)?);
            let raised = record::is_raised(at.as_deref());
            Entry::Window((ms, name.to_owned()), Window { win, class, pipeline, episodes: alarms, raised, bytes })
        }
        Head::Label { label, wins, alarm, id, by, note } => {
            let episode = alarm.zip(id).map(|(alarm, id)| Episode { alarm, id });
            let wins = wins.iter().map(|win| digest(win)).collect::<Option<Vec<String>>>()?;
            Entry::Label(Labelled { label, wins, episode, by, note, bytes })
        }
    })
}

/// Bytes of a file of this length on the disk.
fn on_disk(len: usize) -> u64 {
    (len as u64).div_ceil(limits::SAMPLES_BLOCK) * limits::SAMPLES_BLOCK
}

/// Whether a window that is kept already is kept for more when it is chosen once more; then `around` has all its episodes.
fn is_news(kept: &Window, class: Kept, around: &mut Option<(At, Vec<Episode>)>) -> bool {
    let new = around.iter().flat_map(|(_, episodes)| episodes).any(|of| !kept.episodes.contains(of));
    if let Some((at, episodes)) = around {
        episodes.retain(|of| !kept.episodes.contains(of));
        episodes.splice(0..0, kept.episodes.iter().cloned());
        *at = if kept.raised { At::Raised } else { *at };
    }
    new || class > kept.class
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
