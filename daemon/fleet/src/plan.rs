//! Plans: made from an artifact and limits, shown, published. This program writes the plan and its secrets; `minisign` signs. What
//! devices would refuse is refused here, by their own code.

use std::path::{Path, PathBuf};

use kentledge::{
    cli::say,
    control::plans::{Plan, hash},
    error::{Context, Fatal},
    host::clock::rfc3339_ms,
    model::keyset::{Keyset, Role},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    broker::{Line, Whom},
    heard::{self, Asks, Shared, now_ms},
    rollout::{
        Secrets, new_secret,
        progress::{self, Progress},
        write_private,
    },
    send,
};

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Act {
    /// Writes a plan to sign, and its secrets file
    Make(Box<Make>),
    /// Publishes a signed plan (FILE.minisig lies beside it)
    Publish {
        /// The plan
        file: PathBuf,
        /// The devices' keyset: the signature is checked by it first
        #[arg(long)]
        keyset: Option<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows a plan: what it brings, to how many devices of each wave
    Show {
        /// The plan's file
        file: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Options of `make`.
#[derive(Debug, clap::Args)]
pub struct Make {
    /// model, os or config
    kind: String,
    /// The bundle (.kmb, .raucb), or the settings (.toml)
    artifact: PathBuf,
    /// Whom it is for: SITE/_all, SITE/_c-COHORT or SITE/DEVICE
    #[arg(long)]
    to: String,
    /// Name of the plan; without it, that of the file
    #[arg(long)]
    name: Option<String>,
    /// Where devices fetch a bundle: https
    #[arg(long)]
    url: Option<String>,
    /// Cumulative shares of the waves, in percent
    #[arg(long, value_delimiter = ',', default_values_t = [1.0, 10.0, 100.0])]
    waves: Vec<f64>,
    /// How long a wave must have been well before the next one opens, s
    #[arg(long, default_value_t = 3600)]
    hold_s: u64,
    /// More failures than this share of a wave halt the plan, percent
    #[arg(long, default_value_t = 2.0)]
    failed_max: f64,
    /// A wave waits while more than this share of it is offline, percent
    #[arg(long, default_value_t = 30.0)]
    offline_max: f64,
    /// At most so many devices at a time
    #[arg(long)]
    concurrent_max: Option<u64>,
    /// Devices of a wave start spread over so many seconds
    #[arg(long, default_value_t = 0)]
    spread_s: u64,
    /// A device starts only after so long a connection, s
    #[arg(long, default_value_t = 30)]
    freshness_s: u64,
    /// No device starts after so many days
    #[arg(long, default_value_t = 14.0)]
    expires_days: f64,
    /// Settings are laid over what is set, instead of replacing it
    #[arg(long)]
    merge: bool,
    /// Name of the key that will sign, with the role `rollout`
    #[arg(long, default_value = "release")]
    issuer: String,
    /// Folder for the files; without it, here
    #[arg(long, short)]
    out: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Does it.
///
/// # Errors
/// A device would refuse the plan, a file cannot be read or written, or there is no broker.
pub async fn act(act: &Act, whom: &Whom) -> Result<(), Fatal> {
    match act {
        Act::Make(options) => make(options),
        Act::Publish { file, keyset, json } => publish(file, keyset.as_deref(), *json, whom).await,
        Act::Show { file, json } => show(file, *json, whom).await,
    }
}

fn make(options: &Make) -> Result<(), Fatal> {
    let now = now_ms();
    let name = match &options.name {
        Some(name) => name.clone(),
        None => options.artifact.file_stem().and_then(|stem| stem.to_str()).unwrap_or("plan").to_lowercase(),
    };
    let seq = u64::try_from(now).context("the clock of this machine")?;
    let waves = options.waves.iter().map(|_| new_secret()).collect::<Result<Vec<_>, _>>()?;
    let secrets = Secrets { plan: name, seq, waves, halt: new_secret()? };
    let text = text(options, &artifact(options)?, &secrets, now).to_string();
    send::is_address(&options.to).map_err(Fatal::failed)?;
    let plan = read(&text)?;
    let folder = options.out.clone().unwrap_or_default();
    let file = folder.join(format!("{}-{seq}.plan.json", plan.name));
    let secret = folder.join(format!("{}-{seq}.secrets.json", plan.name));
    secrets.write(&secret)?;
    write_private(&file, &text)?;
    let (file, secret) = (file.display(), secret.display());
    if options.json {
        let value = json!({"plan": file.to_string(), "secrets": secret.to_string(), "name": plan.name, "seq": seq});
        return say(&value.to_string());
    }
    say(&format!(
        "{file}\n  the plan: look at it with `kentledge-fleet plan show {file}`\n{secret}\n  its secrets: whoever has them opens its \
         waves and halts it; keep it with the controller\n\nSign the plan where the key is, then publish and run it:\n\n  minisign -S -s \
         {}.sec -m {file}\n  kentledge-fleet plan publish {file}\n  kentledge-fleet rollout run {} --secrets {secret}",
        options.issuer, plan.name
    ))
}

/// The text of a plan.
fn text(options: &Make, artifact: &Value, secrets: &Secrets, now_ms: i64) -> Value {
    let last = options.waves.len().saturating_sub(1);
    let wave = |(i, share): (usize, &f64)| {
        let hold_s = if i == last { 0 } else { options.hold_s };
        json!({"share": share / 100.0, "gate": hash(&secrets.waves[i]), "hold_s": hold_s})
    };
    let mut limits = json!({"failed_max": options.failed_max / 100.0, "offline_max": options.offline_max / 100.0});
    if let Some(most) = options.concurrent_max {
        limits["concurrent_max"] = json!(most);
    }
    if options.spread_s > 0 {
        limits["spread_s"] = json!(options.spread_s);
    }
    let expires = now_ms.saturating_add((options.expires_days * 86_400_000.0) as i64);
    json!({
        "v": 1, "type": "plan", "to": options.to, "issuer": options.issuer, "name": secrets.plan, "seq": secrets.seq,
        "issued": rfc3339_ms(now_ms), "expires_at": rfc3339_ms(expires), "kind": options.kind, "artifact": artifact,
        "seed": hash(&secrets.halt).chars().take(16).collect::<String>(),
        "waves": options.waves.iter().enumerate().map(wave).collect::<Vec<_>>(), "limits": limits,
        "freshness_s": options.freshness_s, "halt": hash(&secrets.halt),
    })
}

/// The arguments of the command that the plan brings.
fn artifact(options: &Make) -> Result<Value, Fatal> {
    let file = &options.artifact;
    if options.kind == "config" {
        let mut value = json!({"toml": send::read_file(file)?});
        if options.merge {
            value["mode"] = json!("merge");
        }
        return Ok(value);
    }
    let url = options.url.as_deref();
    let url = url.ok_or_else(|| Fatal::failed("--url is needed: where devices fetch the bundle, by https"))?;
    let (sha256, size) = digest(file)?;
    Ok(json!({"sha256": sha256, "size": size, "url": url}))
}

/// SHA-256 and length of a file, which may be large.
fn digest(file: &Path) -> Result<(String, u64), Fatal> {
    let read = || {
        let mut digest = Sha256::new();
        let size = std::io::copy(&mut std::fs::File::open(file)?, &mut Digesting(&mut digest))?;
        let hex: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        std::io::Result::Ok((hex, size))
    };
    read().context(format!("read {}", file.display()))
}

struct Digesting<'a>(&'a mut Sha256);

impl std::io::Write for Digesting<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn read(text: &str) -> Result<Plan, Fatal> {
    Plan::read(text).map_err(|refusal| {
        Fatal::failed(format!("a device would reject this plan ({}): {}", refusal.0.word(), refusal.1))
    })
}

async fn publish(file: &Path, keyset: Option<&Path>, as_json: bool, whom: &Whom) -> Result<(), Fatal> {
    let (text, minisig) = (send::read_file(file)?, send::read_file(&send::beside(file))?);
    let plan = read(&text)?;
    if now_ms() >= plan.expires_ms {
        return Err(Fatal::failed("a device would reject this plan: it has expired"));
    }
    if let Some(keyset) = keyset {
        let keys = Keyset::read(keyset).context(format!("read {}", keyset.display()))?;
        let by = keys.signer(Role::Rollout, text.as_bytes(), &minisig);
        let by = by.context("a device would reject this plan: bad_signature")?;
        if by != plan.issuer {
            let issuer = &plan.issuer;
            return Err(Fatal::failed(format!(
                "a device would reject this plan: `{by}` signed it, and it names `{issuer}`"
            )));
        }
    }
    let parcel = send::parcel(&text, &minisig).map_err(Fatal::failed)?;
    let mqtt = whom.mqtt()?;
    let prefix = mqtt.topic_prefix.clone();
    let publish = |shared: Shared, line: Line| async move {
        shared.settled().await;
        let known = progress::plans(&shared.lock().fleet);
        let newer = known.iter().find(|found| found.plan.name == plan.name && found.plan.to == plan.to);
        if let Some(found) = newer.filter(|found| found.plan.seq > plan.seq) {
            let seq = found.plan.seq;
            return Err(Fatal::failed(format!(
                "a device would reject this plan: sequence {seq} of it is at the broker"
            )));
        }
        // Gates and a halt of the plan before would be refused by devices, and confuse people.
        let stale: Vec<String> = {
            let inner = shared.lock();
            let of = |key: &&String| {
                let rest = key.strip_prefix(&plan.to).and_then(|rest| rest.strip_prefix('/')).unwrap_or("");
                rest == format!("halt/{}", plan.name) || rest.starts_with(&format!("gate/{}/", plan.name))
            };
            let same = newer.is_some_and(|found| found.plan.seq == plan.seq);
            if same { Vec::new() } else { inner.fleet.down.keys().filter(of).cloned().collect() }
        };
        for key in stale {
            let rest = key.strip_prefix(&plan.to).unwrap_or("");
            let topic = format!("{prefix}kl/{}/dn{rest}", plan.to);
            line.publish(&topic, Vec::new(), true).await.map_err(Fatal::failed)?;
        }
        line.publish(&format!("{prefix}{}", parcel.topic), parcel.payload, true).await.map_err(Fatal::failed)?;
        let topic = &parcel.topic;
        say(&if as_json {
            json!({"published": topic, "seq": plan.seq}).to_string()
        } else {
            format!("published: {topic}")
        })
    };
    heard::with_also(whom, mqtt, Asks::Nobody, publish, |_| {}).await
}

async fn show(file: &Path, as_json: bool, whom: &Whom) -> Result<(), Fatal> {
    let plan = read(&send::read_file(file)?)?;
    // Without a broker it is shown without devices.
    let counted = heard::with(whom, |shared, _| {
        let plan = &plan;
        async move {
            shared.whole().await;
            Ok(progress::progress(plan, &shared.lock().fleet))
        }
    });
    let all = counted.await.unwrap_or_else(|why| {
        tracing::warn!("devices are not counted: {why}");
        Progress { waves: vec![progress::Wave::default(); plan.waves.len()], ..Progress::default() }
    });
    let value = progress::json(&plan, &all, now_ms());
    if as_json {
        return say(&value.to_string());
    }
    let wave = |(i, wave): (usize, &kentledge::control::plans::Wave)| {
        let (n, offline) = (all.waves[i].devices, all.waves[i].devices - all.waves[i].online);
        let share = crate::rollout::decide::percent(wave.share);
        format!("  wave {} to {share}: {n} devices, {offline} offline; then {} s of hold", i + 1, wave.hold_s)
    };
    let waves: Vec<String> = plan.waves.iter().enumerate().map(wave).collect();
    let percent = crate::rollout::decide::percent;
    say(&format!(
        "{} {} to {}\n  brings: {} ({})\n  signed as: {}, {}; no start after {}\n{}\n  halts when more than {} of a wave fail; waits \
         while more than {} are offline",
        plan.name,
        plan.seq,
        plan.to,
        progress::what(&plan),
        plan.kind.command(),
        plan.issuer,
        rfc3339_ms(plan.issued_ms),
        rfc3339_ms(plan.expires_ms),
        waves.join("\n"),
        percent(plan.limits.failed_max),
        percent(plan.limits.offline_max)
    ))
}
