//! Brings a bundle onto the device: by HTTPS, by chunks over MQTT, or from a file on the machine. Chunks are accepted in
//! order only and synced before they are acknowledged. After a gap the sender gets the offset to continue from.

use std::{
    fs::{File, OpenOptions},
    io::{Seek, Write},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    Outcome, State,
    command::Install,
    jobs::{JobNews, Jobs},
    models::{News, Phase, Refused, Work, refuse},
    request::{Refusal, Why},
};
use crate::{
    host::{
        Clock,
        fetch::{self, Stopped, Wanted},
    },
    limits,
    model::{
        bundle::{self, Bundle},
        keyset::Keyset,
        store::{Brings, Job},
    },
};

/// The name in the incoming folder of the store for the copy of a local file.
const COPY: &str = "copy";

impl Jobs {
    /// Allows one install at a time. An install whose sender stopped sending chunks is cancelled.
    pub(super) fn make_way(&mut self) -> Refused<()> {
        match &self.models.work {
            None => Ok(()),
            Some(Work { job, phase: Phase::Bringing { .. }, .. }) if job.brings == Brings::Chunks => {
                self.job_failed(State::Failed, "another one was asked for before it was here");
                Ok(())
            }
            Some(_) => refuse(Why::Busy, "another model is on its way"),
        }
    }

    /// Copies the file of a local caller, in a thread: a large file takes seconds on a slow card.
    pub(super) fn copy_file(&mut self, id: &str, mut file: File) -> Refused<Option<Outcome>> {
        self.make_way()?;
        let invalid = |why: String| Refusal(Why::Invalid, why);
        let size = file.metadata().map_err(|why| invalid(why.to_string()))?.len();
        self.room_for(size).map_err(invalid)?;
        let (id, to) = (id.to_owned(), self.models.store.incoming(COPY));
        let work = move || {
            let copied = file.rewind().and_then(|()| std::io::copy(&mut file, &mut File::create(&to)?));
            let size = copied.map_err(|why| format!("copy it: {why}"))?;
            let copy = File::open(&to).map_err(|why| why.to_string())?;
            Ok((bundle::digest(&copy)?, size))
        };
        self.long(work, move |copied| News::Copied(id, copied));
        Ok(None)
    }

    /// The copy is complete.
    pub(super) fn install_copy(&mut self, id: &str, (sha256, size): (String, u64)) -> Refused<Option<Outcome>> {
        let (from, to) = (self.models.store.incoming(COPY), self.models.store.incoming(&sha256));
        std::fs::rename(from, to).map_err(|why| Refusal(Why::Invalid, format!("copy it: {why}")))?;
        self.install(id, Install { sha256, size, url: None }, None)
    }

    pub(super) fn room_for(&self, size: u64) -> Result<(), String> {
        if size == 0 || size > limits::BUNDLE_BYTES_MAX {
            return Err(format!("a bundle has 1 to {} bytes, not {size}", limits::BUNDLE_BYTES_MAX));
        }
        self.room(size)
    }

    /// Receives the bundle of a job.
    pub(super) fn bring(&mut self, job: Job) {
        let path = self.models.store.incoming(&job.sha256);
        let have = path.metadata().map_or(0, |meta| meta.len());
        let (brings, sha256, size) = (job.brings.clone(), job.sha256.clone(), job.size);
        if self.models.store.has(&sha256) {
            // The bundle is in the store already, or the previous process had just moved it there.
            self.models.begin(job, Phase::Opening, None);
            self.open_stored(&sha256);
            return self.show_models();
        }
        let began_ns = Clock::boot_ns();
        let number = self.models.begin(job, Phase::Bringing { have, told_ns: 0, began_ns, moved_ns: began_ns }, None);
        match brings {
            Brings::Https(url) if have != size => {
                let wanted = self.wanted(url, size, self.models.waits.stopped());
                self.long(move || fetch::fetch(&wanted, &path), move |brought| News::Brought(number, brought));
            }
            _ if have == size => self.open(path),
            _ => self.tell_missing(&sha256),
        }
        self.show_models();
    }

    /// The arguments of a fetch: URL, size, and the certificates to trust.
    pub(super) fn wanted(&self, url: String, size: u64, stopped: Stopped) -> Wanted {
        let config = &self.config;
        let broker_ca = config.mqtt.as_ref().and_then(|mqtt| mqtt.tls.as_ref()?.ca_file.clone());
        Wanted { url, size, ca_file: config.models.ca_file.clone(), broker_ca, stopped }
    }

    /// Runs a slow step in a thread; its result, a panic too, comes as `News`.
    pub(super) fn long<T: 'static>(
        &self,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
        news: impl FnOnce(Result<T, String>) -> News + Clone + Send + 'static,
    ) {
        let (out, unborn) = (self.reports.0.clone(), news.clone());
        let thread = std::thread::Builder::new().name("model".into()).spawn(move || {
            let done = crate::host::beats::caught(work);
            // The channel has room for every report of every group; a full one means control is gone.
            let _ = out.try_send(news(done));
        });
        if let Err(why) = thread {
            let _ = self.reports.0.try_send(unborn(Err(format!("start a thread: {why}"))));
        }
    }

    pub(super) fn open(&mut self, path: PathBuf) {
        self.set_phase(Phase::Opening);
        let Some(Work { job, number, .. }) = &self.models.work else { return };
        let (asked, number) = (job.sha256.clone(), *number);
        let keys = self.keys_for_models().cloned();
        self.long(move || open(&path, &asked, &keys?), move |opened| News::Opened(number, opened));
    }

    /// Handles a chunk.
    pub(super) fn chunk(&mut self, sha256: &str, offset: u64, bytes: &[u8]) {
        let Some(Work { job, phase: Phase::Bringing { have, told_ns, moved_ns, .. }, .. }) = &mut self.models.work
        else {
            return;
        };
        if job.sha256 != sha256 || job.brings != Brings::Chunks {
            return;
        }
        let (size, now_ns) = (job.size, Clock::boot_ns());
        let end = offset.saturating_add(bytes.len() as u64);
        if end > size || offset > *have {
            // A gap, or a chunk beyond the end: tell the sender the offset to continue from, once a second at most.
            if now_ns.saturating_sub(*told_ns) > limits::BLOB_TOLD_NS {
                *told_ns = now_ns;
                self.tell_missing(sha256);
            }
            return;
        }
        if end <= *have {
            return;
        }
        let fresh = &bytes[(*have - offset) as usize..];
        let path = self.models.store.incoming(sha256);
        // Sync before the broker may delete the chunk.
        let written = OpenOptions::new().create(true).append(true).open(&path).and_then(|mut file| {
            file.write_all(fresh)?;
            file.sync_data()
        });
        if let Err(why) = written {
            return self.job_failed(State::Failed, &format!("write {}: {why}", path.display()));
        }
        (*have, *moved_ns) = (end, now_ns);
        if end == size {
            self.tell_missing(sha256);
            self.open(path);
        }
    }

    /// `up/blob/SHA256`: what is still missing.
    fn tell_missing(&mut self, sha256: &str) {
        let Some(Work { job, phase: Phase::Bringing { have, .. }, .. }) = &self.models.work else { return };
        let missing: Vec<[u64; 2]> = if *have < job.size { vec![[*have, job.size]] } else { Vec::new() };
        let members =
            json!({"sha256": sha256, "size": job.size, "missing": missing, "chunk_bytes": limits::BLOB_CHUNK});
        if let Value::Object(members) = members {
            self.tell(JobNews::Blob(members));
        }
    }
}

fn open(path: &Path, asked: &str, keys: &Keyset) -> Result<Box<Bundle>, String> {
    let file = File::open(path).map_err(|why| format!("open {}: {why}", path.display()))?;
    Bundle::open_asked(&file, asked, Some(keys)).map(Box::new)
}
