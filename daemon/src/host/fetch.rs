//! Brings a file of a known size by HTTPS: piece by piece, so that what is there is not fetched again, that a server which
//! drips is left, and that one which streams for ever or lies about lengths gets no further than the size.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ureq::{
    Agent,
    tls::{Certificate, RootCerts, TlsConfig, TlsProvider},
};

use super::HostError;
use crate::limits;

/// What is fetched.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// `https://…`
    pub url: String,
    /// Exactly so many bytes.
    pub size: u64,
    /// Certificates that may sign the server's; `None`: those of the system, and the broker's.
    pub ca_file: Option<PathBuf>,
    /// Who may sign the broker's. What is brought is signed itself: this is about the line alone.
    pub broker_ca: Option<PathBuf>,
    /// Set when the fetch is not needed any more.
    pub stopped: Stopped,
}

/// Tells a fetch to stop: true after the last `Waits` was dropped.
#[derive(Debug, Clone, Default)]
pub struct Stopped(Arc<AtomicBool>);

/// The fetch is needed while this exists.
#[derive(Debug, Default)]
pub struct Waits(Arc<AtomicBool>);

impl Waits {
    /// For the fetch.
    pub fn stopped(&self) -> Stopped {
        Stopped(self.0.clone())
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Fetches it to `to`, going on after what is there. Blocking; ends within `limits::FETCH`.
///
/// # Errors
/// It is not `https://`, the server refuses it or breaks off too often, it takes too long, or the disk is not writable.
pub fn fetch(wanted: &Wanted, to: &Path) -> Result<(), HostError> {
    if !wanted.url.starts_with("https://") {
        return Err(HostError(format!("{}: only https:// is fetched from", wanted.url)));
    }
    let what = |why: String| HostError(format!("fetch {}: {why}", wanted.url));
    let mut roots = match &wanted.ca_file {
        None => rustls_native_certs::load_native_certs().certs,
        Some(_) => Vec::new(),
    };
    if let Some(path) = wanted.ca_file.as_ref().or(wanted.broker_ca.as_ref()) {
        let pem = std::fs::read(path).map_err(|why| what(format!("read {}: {why}", path.display())))?;
        roots.extend(rustls_pki_pem(&pem));
    }
    let certs: Vec<Certificate<'static>> = roots.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let tls = TlsConfig::builder().provider(TlsProvider::Rustls).root_certs(RootCerts::new_with_certs(&certs)).build();
    // rustls takes the first provider that a process installs; ours is ring everywhere.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let began = Instant::now();
    let mut file = OpenOptions::new().create(true).append(true).open(to).map_err(|why| what(why.to_string()))?;
    // Another run of this process may still fetch, until it sees `stopped`.
    file.lock().map_err(|why| what(why.to_string()))?;
    let (mut tries, mut waited) = (0u32, Duration::ZERO);
    loop {
        let have = file.metadata().map_err(|why| what(why.to_string()))?.len();
        if wanted.stopped.0.load(Ordering::Relaxed) {
            return Err(what("stopped".into()));
        }
        if have == wanted.size {
            return file.sync_all().map_err(|why| what(why.to_string()));
        }
        if have > wanted.size {
            file.set_len(0).map_err(|why| what(why.to_string()))?;
            continue;
        }
        if began.elapsed() + waited > limits::FETCH {
            return Err(what(format!("{have} of {} bytes within {} s", wanted.size, limits::FETCH.as_secs())));
        }
        let config = Agent::config_builder().tls_config(tls.clone()).https_only(true).max_redirects(4);
        let agent: Agent = config.timeout_global(Some(limits::FETCH_PIECE)).build().into();
        match piece(&agent, wanted, have, &mut file) {
            Ok(()) => tries = 0,
            Err(Stop::Refused(why)) => return Err(what(why)),
            Err(Stop::Broke(why)) => {
                let more = file.metadata().map_or(have, |meta| meta.len()) - have;
                // As much as the slowest line brings in that time counts as going on.
                tries = if more >= limits::FETCH_LEAST { 0 } else { tries + 1 };
                if tries >= limits::FETCH_TRIES {
                    return Err(what(format!(
                        "{why}, {tries} times in a row; {} of {} bytes",
                        have + more,
                        wanted.size
                    )));
                }
                let wait = limits::RECONNECT_MAX
                    .min(Duration::from_millis(500 << tries.min(6)))
                    .mul_f64(0.5 + fastrand::f64() / 2.0);
                waited += wait;
                std::thread::sleep(wait);
            }
        }
    }
}

enum Stop {
    /// It makes no sense to ask again.
    Refused(String),
    /// It may go better next time.
    Broke(String),
}

fn piece(agent: &Agent, wanted: &Wanted, have: u64, file: &mut File) -> Result<(), Stop> {
    let last = (have + limits::FETCH_PIECE_BYTES).min(wanted.size) - 1;
    let answer = agent.get(&wanted.url).header("Range", format!("bytes={have}-{last}")).call();
    let answer = answer.map_err(|why| match why {
        ureq::Error::StatusCode(code @ 400..=499) if code != 408 && code != 429 => {
            Stop::Refused(format!("status {code}"))
        }
        other => Stop::Broke(other.to_string()),
    })?;
    // A server without ranges sends it all: what is there already is read over.
    let mut skip = if answer.status() == 206 { 0 } else { have };
    let mut left = if answer.status() == 206 { last + 1 - have } else { wanted.size - have };
    let mut body = answer.into_body().into_reader();
    let mut buffer = [0u8; 16 * 1024];
    while left > 0 {
        let n = body.read(&mut buffer).map_err(|why| Stop::Broke(why.to_string()))?;
        if n == 0 {
            return Err(Stop::Broke("it ended early".into()));
        }
        let over = skip.min(n as u64);
        skip -= over;
        let fresh = &buffer[over as usize..n];
        // Whatever comes beyond the size is not taken.
        let take = fresh.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.write_all(&fresh[..take]).map_err(|why| Stop::Refused(why.to_string()))?;
        left -= take as u64;
    }
    Ok(())
}

fn rustls_pki_pem(pem: &[u8]) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect()
}
