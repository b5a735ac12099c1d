//! Rollouts: opens waves as their limits allow, halts when they do not. It knows the secrets of the waves and of the halt, and no key:
//! it can open what was signed, never bring anything else. All that it knows of a rollout it reads from the broker, again each second.

pub mod decide;
pub mod progress;
mod show;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use kentledge::{
    cli::say,
    control::plans::{Plan, hash, is_secret},
    error::{Context, Fatal},
    host::clock::rfc3339_ms,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use self::{
    decide::Step,
    progress::{Found, Progress},
    show::Screen,
};
use crate::{
    broker::{Line, Whom},
    heard::{self, Shared, now_ms},
    limits, send,
};

/// The secrets of a plan, as `plan make` wrote them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secrets {
    /// Name of the plan.
    pub plan: String,
    /// Its sequence.
    pub seq: u64,
    /// By wave.
    pub waves: Vec<String>,
    /// Of the halt; after a resume the new one.
    pub halt: String,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Act {
    /// Opens the waves of a published plan one after the other, and halts it when too many devices fail
    Run {
        /// Name of the plan, or its signed file, for a broker that does not send what it keeps
        plan: String,
        /// The secrets file that `plan make` wrote
        #[arg(long)]
        secrets: PathBuf,
        /// No wave opens, and nothing is over, before so many devices are known that the plan is for: where the broker may have lost
        /// what it kept
        #[arg(long, default_value_t = 1)]
        devices: u64,
        /// Only says what it would do next
        #[arg(long)]
        dry_run: bool,
        /// What changes, as JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Shows where a plan stands, or all of them
    Status {
        /// Name of the plan, or its signed file
        plan: Option<String>,
        /// As JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Halts a plan at once: no device starts any more
    Halt {
        /// Name of the plan, or its signed file, for a broker that does not send what it keeps
        plan: String,
        /// The secrets file
        #[arg(long)]
        secrets: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Writes the text that resumes a halted plan, to be signed, with a new halt secret in the secrets file
    Resume {
        /// Name of the plan, or its signed file, for a broker that does not send what it keeps
        plan: String,
        /// The secrets file; it is written again
        #[arg(long)]
        secrets: PathBuf,
        /// Name of the key that will sign
        #[arg(long)]
        issuer: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Does it.
///
/// # Errors
/// There is no such plan, the secrets are not its own, the rollout did not end well, or there is no broker.
pub async fn act(act: &Act, whom: &Whom) -> Result<(), Fatal> {
    let prefix = whom.mqtt()?.topic_prefix;
    heard::with(whom, |shared, line| async move {
        match act {
            Act::Run { plan, secrets, devices, dry_run, json } => {
                whole(&shared).await?;
                let found = find(&shared, plan)?;
                let secrets = Secrets::read(secrets, &found)?;
                let mut run = Run { least: *devices, ..Run::new(shared, line, prefix, found, secrets) };
                if *dry_run { run.dry(*json) } else { run.run(Screen::new(*json)).await }
            }
            Act::Status { plan, json } => {
                whole(&shared).await?;
                status(&shared, plan.as_deref(), *json)
            }
            Act::Halt { plan, secrets, json } => halt(shared, line, prefix, plan, secrets, *json).await,
            Act::Resume { plan, secrets, issuer, json } => {
                whole(&shared).await?;
                let found = find(&shared, plan)?;
                resume(&shared, &found, secrets, issuer.as_deref(), *json)
            }
        }
    })
    .await
}

impl Secrets {
    /// Reads the file, and checks that it belongs to the plan.
    ///
    /// # Errors
    /// It cannot be read, or its secrets open nothing of the plan.
    pub fn read(file: &Path, found: &Found) -> Result<Self, Fatal> {
        let text = send::read_file(file)?;
        let secrets: Self = serde_json::from_str(&text).context(format!("read {}", file.display()))?;
        let plan = &found.plan;
        let fits = secrets.plan == plan.name
            && secrets.seq == plan.seq
            && secrets.waves.len() == plan.waves.len()
            && secrets.waves.iter().zip(&plan.waves).all(|(secret, wave)| hash(secret) == wave.gate);
        if !fits {
            let (name, seq) = (&plan.name, plan.seq);
            return Err(Fatal::failed(format!(
                "{} does not belong to the plan {name} {seq} at the broker",
                file.display()
            )));
        }
        Ok(secrets)
    }

    /// Writes the file, readable by its owner alone, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, file: &Path) -> Result<(), Fatal> {
        let text = serde_json::to_string_pretty(self).context("write the secrets")?;
        write_private(file, &text)
    }
}

/// Writes a file that only its owner reads.
///
/// # Errors
/// It cannot be written.
pub fn write_private(file: &Path, text: &str) -> Result<(), Fatal> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let written = (|| {
        // One that was left over may be readable by others.
        let _ = std::fs::remove_file(&new);
        let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        std::fs::rename(&new, file)
    })();
    written.context(format!("write {}", file.display()))
}

/// A new secret: 192 bits of the kernel's.
///
/// # Errors
/// The kernel gives none.
pub fn new_secret() -> Result<String, Fatal> {
    use std::io::Read;
    let mut bytes = [0u8; 24];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("read /dev/urandom")?;
    let secret: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    debug_assert!(is_secret(&secret));
    Ok(secret)
}

/// The plan of this name at the broker, or of this file.
fn find(shared: &Shared, name: &str) -> Result<Found, Fatal> {
    if let Some(file) = file_of(name) {
        return from_file(file);
    }
    let all = progress::plans(&shared.lock().fleet);
    let mut found: Vec<Found> = all.into_iter().filter(|found| found.plan.name == name).collect();
    match (found.pop(), found.len()) {
        (Some(one), 0) => Ok(one),
        (Some(_), _) => Err(Fatal::failed(format!("several addressees have a plan {name}: choose one with --site"))),
        (None, _) => Err(Fatal::failed(format!(
            "there is no plan {name} at the broker: `plan publish` brings it there; where the broker does not \
                 send what it keeps, as RabbitMQ does not, give the plan's signed file instead of its name"
        ))),
    }
}

/// A file, if that is what was given.
fn file_of(name: &str) -> Option<&Path> {
    let file = Path::new(name);
    (name.ends_with(".json") && file.is_file()).then_some(file)
}

/// A signed plan, as `plan publish` sends it.
fn from_file(file: &Path) -> Result<Found, Fatal> {
    let (text, minisig) = (send::read_file(file)?, send::read_file(&send::beside(file))?);
    let parcel = send::parcel(&text, &minisig).context(format!("read {}", file.display()))?;
    let plan =
        Plan::read(&text).map_err(|refusal| Fatal::failed(format!("{} is no plan: {}", file.display(), refusal.1)))?;
    Ok(Found { plan, payload: parcel.payload })
}

/// Waits until all that can be known is known: who decides on a part of the picture takes devices that are not in it for absent.
async fn whole(shared: &Shared) -> Result<(), Fatal> {
    let whole = shared.whole().await;
    whole
        .then_some(())
        .ok_or_else(|| Fatal::failed("the broker is still sending what it keeps: nothing is done; try again"))
}

/// Halts a plan as soon as it is known: that does not wait for what the broker keeps of ten thousand devices.
async fn halt(shared: Shared, line: Line, prefix: String, name: &str, file: &Path, as_json: bool) -> Result<(), Fatal> {
    let (found, secrets) = loop {
        let read = find(&shared, name).and_then(|found| Ok((Secrets::read(file, &found)?, found)));
        match read {
            Ok((secrets, found)) => break (found, secrets),
            Err(why) if shared.is_settled() => return Err(why),
            Err(_) => sleep(limits::SETTLED / 8).await,
        }
    };
    let plan = found.plan.name.clone();
    Run::new(shared, line, prefix, found, secrets).halt().await?;
    say(&if as_json { json!({"halted": plan}).to_string() } else { format!("{plan} is halted") })
}

fn status(shared: &Shared, name: Option<&str>, as_json: bool) -> Result<(), Fatal> {
    let inner = shared.lock();
    let all: Vec<Found> = match name.and_then(file_of) {
        Some(file) => vec![from_file(file)?],
        None => {
            let wanted = |found: &Found| name.is_none_or(|name| found.plan.name == name);
            progress::plans(&inner.fleet).into_iter().filter(wanted).collect()
        }
    };
    if all.is_empty() && !as_json {
        return say("there is no such plan at the broker");
    }
    all.iter().try_for_each(|found| {
        let progress = progress::progress(&found.plan, &inner.fleet);
        match as_json {
            true => say(&progress::json(&found.plan, &progress, now_ms()).to_string()),
            false => say(&show::lines(&found.plan, &progress).join("\n")),
        }
    })
}

fn resume(shared: &Shared, found: &Found, file: &Path, issuer: Option<&str>, as_json: bool) -> Result<(), Fatal> {
    let mut secrets = Secrets::read(file, found)?;
    let plan = &found.plan;
    if !progress::progress(plan, &shared.lock().fleet).halted {
        return Err(Fatal::failed(format!("the plan {} is not halted", plan.name)));
    }
    secrets.halt = new_secret()?;
    let now = now_ms();
    let text = json!({"v": 1, "type": "resume", "to": plan.to, "issuer": issuer.unwrap_or(&plan.issuer), "plan": plan.name,
                      "seq": plan.seq, "n": now, "issued": rfc3339_ms(now), "halt": hash(&secrets.halt)});
    secrets.write(file)?;
    let name = format!("resume-{}-{now}.json", plan.name);
    std::fs::write(&name, text.to_string()).context(format!("write {name}"))?;
    if as_json {
        return say(&json!({"file": name}).to_string());
    }
    say(&format!(
        "{name} is the text to sign:\n\n{text}\n\nSign it, then send it; the new halt secret is in {}:\n\n  minisign -S -s {}.sec -m \
         {name}\n  kentledge-fleet send --signed {name}",
        file.display(),
        issuer.unwrap_or(&plan.issuer)
    ))
}

/// A rollout that is run.
struct Run {
    shared: Shared,
    line: Line,
    prefix: String,
    found: Found,
    secrets: Secrets,
    /// Devices that must be known.
    least: u64,
    /// When a device was given something last: it is not given again before it had time to report.
    given: BTreeMap<String, Instant>,
}

/// How often it looks.
const TURN: Duration = Duration::from_millis(500);

/// A device has so long to report what it was given.
const REPORT: Duration = Duration::from_secs(20);

/// Devices that are answered in a turn.
const ANSWERED: usize = 100;

impl Run {
    fn new(shared: Shared, line: Line, prefix: String, found: Found, secrets: Secrets) -> Self {
        Self { shared, line, prefix, found, secrets, least: 1, given: BTreeMap::new() }
    }

    /// Where it stands; what devices were just given counts as known.
    fn look(&mut self) -> (Progress, Step) {
        self.given.retain(|_, at| at.elapsed() < REPORT);
        let mut all = progress::progress(&self.found.plan, &self.shared.lock().fleet);
        all.given(|id| self.given.contains_key(id));
        all.least = self.least;
        let step = decide::next(&self.found.plan, &all, now_ms());
        (all, step)
    }

    fn dry(&mut self, as_json: bool) -> Result<(), Fatal> {
        let (all, step) = self.look();
        let words = show::words(&step);
        if as_json {
            let mut value = progress::json(&self.found.plan, &all, now_ms());
            value["next"] = json!(words);
            return say(&value.to_string());
        }
        say(&format!("{}\nnext: {words}", show::lines(&self.found.plan, &all).join("\n")))
    }

    async fn run(&mut self, mut screen: Screen) -> Result<(), Fatal> {
        loop {
            sleep(TURN).await;
            // After a lost connection the picture has to come back first.
            if !self.shared.is_settled() {
                continue;
            }
            self.replaced().await?;
            let (all, step) = self.look();
            screen.show(&self.found.plan, &all, &step)?;
            match step {
                Step::Open(wave) => self.gate("", wave).await?,
                Step::Grant(wave, devices) => {
                    for device in devices {
                        self.answer(&device, wave).await?;
                    }
                }
                Step::Halt(why) => {
                    self.halt().await?;
                    screen.end(&self.found.plan, &format!("HALTED: {why}"))?;
                    return Err(Fatal::failed(format!("the plan {} is halted: {why}", self.found.plan.name)));
                }
                Step::Over(true, why) => return screen.end(&self.found.plan, &why),
                Step::Over(false, why) => {
                    screen.end(&self.found.plan, &why)?;
                    return Err(Fatal::failed(why));
                }
                Step::Wait(_) => {}
            }
            self.mend(&all).await?;
        }
    }

    /// A newer plan of this name came: this one is over. A broker that lost it gets it again.
    async fn replaced(&self) -> Result<(), Fatal> {
        let plan = &self.found.plan;
        let (known, is_kept) = {
            let fleet = &self.shared.lock().fleet;
            // Not that of a device that was sent it alone, which is heard here too.
            (progress::plans(fleet), fleet.down.contains_key(&format!("{}/plan/{}", plan.to, plan.name)))
        };
        let now = known.into_iter().find(|found| found.plan.name == plan.name && found.plan.to == plan.to);
        if let Some(now) = now.filter(|now| now.plan.seq > plan.seq) {
            let (name, seq) = (&plan.name, now.plan.seq);
            return Err(Fatal::failed(format!(
                "the plan {name} was replaced by sequence {seq}: run it with its own secrets"
            )));
        }
        if !is_kept {
            let topic = format!("{}kl/{}/dn/plan/{}", self.prefix, plan.to, plan.name);
            self.publish(&topic, self.found.payload.clone(), true).await?;
            tracing::warn!("the broker does not have the plan {}: published it again", plan.name);
        }
        Ok(())
    }

    /// What connected devices lack they are sent alone: a broker may not keep it, or not for them.
    async fn mend(&mut self, all: &Progress) -> Result<(), Fatal> {
        let grants = self.found.plan.limits.concurrent_max.is_some();
        let lack: Vec<String> = all
            .lacking
            .iter()
            .filter(|(id, gates)| !self.given.contains_key(id) && (gates.is_none() || !grants))
            .take(ANSWERED)
            .map(|(id, _)| id.clone())
            .collect();
        for device in lack {
            let topic = format!("{}kl/{device}/dn/plan/{}", self.prefix, self.found.plan.name);
            self.publish(&topic, self.found.payload.clone(), false).await?;
            if grants {
                self.given.insert(device, Instant::now());
            } else {
                self.answer(&device, all.open).await?;
            }
        }
        Ok(())
    }

    /// Gives one device the secrets up to this wave.
    async fn answer(&mut self, device: &str, wave: usize) -> Result<(), Fatal> {
        for wave in 1..=wave {
            self.gate(device, wave).await?;
        }
        self.given.insert(device.to_owned(), Instant::now());
        Ok(())
    }

    /// Publishes the secret of a wave: for all, retained; or to one device.
    async fn gate(&self, device: &str, wave: usize) -> Result<(), Fatal> {
        let to = if device.is_empty() { &self.found.plan.to } else { device };
        let topic = format!("{}kl/{to}/dn/gate/{}/{wave}", self.prefix, self.found.plan.name);
        self.publish(&topic, secret(&self.secrets.waves[wave - 1]), device.is_empty()).await
    }

    async fn halt(&self) -> Result<(), Fatal> {
        let topic = format!("{}kl/{}/dn/halt/{}", self.prefix, self.found.plan.to, self.found.plan.name);
        self.publish(&topic, secret(&self.secrets.halt), true).await
    }

    async fn publish(&self, topic: &str, payload: Vec<u8>, retain: bool) -> Result<(), Fatal> {
        let published = tokio::time::timeout(limits::ACK_MOST, self.line.publish(topic, payload, retain)).await;
        published.context("the broker does not answer")?.context(format!("publish {topic}"))
    }
}

fn secret(text: &str) -> Vec<u8> {
    let value: Value = json!({"v": 1, "secret": text});
    value.to_string().into_bytes()
}
