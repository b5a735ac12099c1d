//! Commands to devices: the text to sign, and what is sent when it is signed. This program holds no key: `minisign` signs. What the
//! device would reject by its shape is rejected here, by the device's own code.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use kentledge::{
    cli::say,
    control::{
        command,
        plans::{Order, Plan, is_name},
        request,
    },
    error::{Context, Fatal},
    host::clock::rfc3339_ms,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    broker::{Heard, Whom},
    heard::{self, Asks, now_ms},
    limits,
    state::read,
};

/// A text to sign.
#[derive(Debug, PartialEq)]
pub struct Made {
    /// Id of the command.
    pub id: String,
    /// The text; the signature covers its bytes.
    pub text: String,
    /// Where it goes, without the prefix.
    pub topic: String,
}

/// A signed message that is ready to go.
#[derive(Debug, PartialEq)]
pub struct Parcel {
    /// Topic, without the prefix.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// The broker keeps it.
    pub retain: bool,
    /// Type and id of the command; of a plan its name.
    pub id: String,
}

/// The inner text of a command. `now_ms` becomes the issuer's sequence.
///
/// # Errors
/// The device would reject it; in its words.
pub fn inner(
    to: &str,
    kind: &str,
    args: &Value,
    issuer: &str,
    nonce: &str,
    life_s: u64,
    now_ms: i64,
) -> Result<Made, String> {
    if issuer.is_empty() {
        return Err("the issuer is missing: the name of the key in the device's keyset".into());
    }
    let id = format!("{kind}-{now_ms}");
    let expires = now_ms.saturating_add(i64::try_from(life_s).unwrap_or(i64::MAX).saturating_mul(1000));
    let mut text = json!({"v": 1, "id": id, "type": kind, "to": to, "issuer": issuer, "iseq": now_ms,
                          "issued": rfc3339_ms(now_ms), "expires_at": rfc3339_ms(expires), "args": args});
    if !nonce.is_empty() {
        text["nonce"] = json!(nonce);
    }
    let text = text.to_string();
    let topic = format!("kl/{to}/dn/cmd/{kind}/{id}");
    check(to, kind, &id, &wrapped(&text, "untrusted comment: not signed yet\n"))?;
    Ok(Made { id, text, topic })
}

/// A plain message of a command that needs no signature.
///
/// # Errors
/// It needs one, or the device would reject it.
pub fn plain(to: &str, kind: &str, args: &Value, now_ms: i64) -> Result<Parcel, String> {
    if command::needs_signature(kind) {
        return Err(format!("{kind} needs a signature"));
    }
    let id = format!("{kind}-{now_ms}");
    let payload = json!({"id": id, "args": args}).to_string().into_bytes();
    check(to, kind, &id, &payload)?;
    Ok(Parcel { topic: format!("kl/{to}/dn/cmd/{kind}/{id}"), payload, retain: false, id: format!("{kind}/{id}") })
}

/// By the device's own reader.
fn check(to: &str, kind: &str, id: &str, payload: &[u8]) -> Result<(), String> {
    is_address(to)?;
    request::guarded(|| request::command(to, kind, id, payload))
        .map(|_| ())
        .map_err(|refusal| format!("a device would reject it ({}): {}", refusal.0.word(), refusal.1))
}

/// `site/device`, `site/_all`, `site/_c-cohort`.
pub fn is_address(to: &str) -> Result<(), String> {
    let name = |text: &str| {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        first && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
    };
    let good = to.split_once('/').is_some_and(|(site, device)| {
        name(site) && (device == "_all" || name(device.strip_prefix("_c-").unwrap_or(device)))
    });
    good.then_some(())
        .ok_or_else(|| format!("invalid address `{to}`: expected SITE/DEVICE, SITE/_all or SITE/_c-COHORT"))
}

fn wrapped(signed: &str, minisig: &str) -> Vec<u8> {
    json!({"signed": signed, "sig": STANDARD.encode(minisig)}).to_string().into_bytes()
}

/// What a signed text becomes: its own members say where it goes.
///
/// # Errors
/// It is no text that devices take, or the signature is no .minisig file.
pub fn parcel(signed: &str, minisig: &str) -> Result<Parcel, String> {
    let value: Value = serde_json::from_str(signed).map_err(|why| format!("the signed text is no JSON: {why}"))?;
    if minisig.lines().count() < 4 || !minisig.starts_with("untrusted comment:") {
        return Err(
            "the signature is no .minisig file: it has four lines, the first begins with `untrusted comment:`".into()
        );
    }
    let member = |name: &str| value[name].as_str().unwrap_or("").to_owned();
    let (to, kind, id) = (member("to"), member("type"), member("id"));
    is_address(&to)?;
    let payload = wrapped(signed, minisig);
    match kind.as_str() {
        "desired" => {
            let read = request::guarded(|| request::desired(&to, &payload));
            read.map_err(|refusal| format!("a device would reject it: {}", refusal.1))?;
            Ok(Parcel { topic: format!("kl/{to}/dn/desired"), payload, retain: true, id: "desired".into() })
        }
        "plan" => {
            let plan = Plan::read(signed).map_err(|refusal| format!("a device would reject it: {}", refusal.1))?;
            let topic = format!("kl/{to}/dn/plan/{}", plan.name);
            Ok(Parcel { topic, payload, retain: true, id: format!("plan/{}", plan.name) })
        }
        "halt" | "resume" => {
            let order = Order::read(signed).map_err(|refusal| format!("a device would reject it: {}", refusal.1))?;
            if !is_name(&order.plan) {
                return Err(format!("invalid name of a plan `{}`", order.plan));
            }
            let topic = format!("kl/{to}/dn/halt/{}", order.plan);
            Ok(Parcel { topic, payload, retain: true, id: format!("{kind}/{}", order.plan) })
        }
        _ => {
            check(&to, &kind, &id, &payload)?;
            let topic = format!("kl/{to}/dn/cmd/{kind}/{id}");
            Ok(Parcel { topic, payload, retain: false, id: format!("{kind}/{id}") })
        }
    }
}

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// SITE/DEVICE, SITE/_all or SITE/_c-COHORT
    #[arg(required_unless_present = "signed")]
    to: Option<String>,
    /// The command's type, such as ping or config.set
    #[arg(required_unless_present = "signed")]
    kind: Option<String>,
    /// Its arguments, a JSON object
    #[arg(default_value = "{}")]
    args: String,
    /// Name of the key that will sign, as in the devices' keyset
    #[arg(long, default_value = "ops")]
    issuer: String,
    /// Publishes this text, which `send` wrote and `minisign` signed (FILE.minisig lies beside it)
    #[arg(long, value_name = "FILE")]
    signed: Option<PathBuf>,
    /// Where to write the text to sign; without it, ID.json here
    #[arg(long, short)]
    out: Option<PathBuf>,
    /// The command expires after so many seconds
    #[arg(long, default_value_t = limits::COMMAND_S)]
    expires_s: u64,
    /// How long to wait for results, s
    #[arg(long, default_value_t = 30)]
    wait_s: u64,
    /// Results as JSON lines
    #[arg(long)]
    json: bool,
}

/// Writes the text to sign, or publishes and shows the results.
///
/// # Errors
/// A device would reject it, a file cannot be read or written, there is no broker, or the result is not `success`.
pub async fn act(args: &Args, whom: &Whom) -> Result<(), Fatal> {
    if let Some(file) = &args.signed {
        let signed = read_file(file)?;
        let minisig = read_file(&beside(file))?;
        let parcel = parcel(&signed, &minisig).map_err(Fatal::failed)?;
        return follow(args, whom, parcel).await;
    }
    let (to, kind) = (args.to.as_deref().unwrap_or(""), args.kind.as_deref().unwrap_or(""));
    let members: Value = serde_json::from_str(&args.args).context("the arguments")?;
    if command::row(kind).is_some() && !command::needs_signature(kind) {
        let parcel = plain(to, kind, &members, now_ms()).map_err(Fatal::failed)?;
        return follow(args, whom, parcel).await;
    }
    // A device whose clock is not synchronised wants the nonce of its connection.
    let nonce = heard::with(whom, |shared, _| async move {
        shared.whole().await;
        Ok(shared.lock().fleet.devices.get(to).map(|device| device.nonce.clone()).unwrap_or_default())
    });
    let nonce = nonce.await?;
    let made = inner(to, kind, &members, &args.issuer, &nonce, args.expires_s, now_ms()).map_err(Fatal::failed)?;
    let file = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{}.json", made.id)));
    std::fs::write(&file, &made.text).context(format!("write {}", file.display()))?;
    let name = file.display();
    if args.json {
        return say(&json!({"file": name.to_string(), "topic": made.topic, "id": made.id}).to_string());
    }
    say(&format!("{name} is the text to sign:\n\n{}\n\nSign it, then send it:\n", made.text))?;
    say(&format!("  minisign -S -s {}.sec -m {name}\n  kentledge-fleet send --signed {name}", args.issuer))
}

/// `FILE.minisig`.
pub fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".minisig");
    name.into()
}

/// A text file, with its name in the error.
///
/// # Errors
/// It cannot be read.
pub fn read_file(file: &Path) -> Result<String, Fatal> {
    std::fs::read_to_string(file).context(format!("read {}", file.display()))
}

/// Publishes, and prints results until the device's is final; of a broadcast, as long as was asked for.
async fn follow(args: &Args, whom: &Whom, parcel: Parcel) -> Result<(), Fatal> {
    let mqtt = whom.mqtt()?;
    let prefix = mqtt.topic_prefix.clone();
    let results: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
    let (theirs, wanted, below) = (results.clone(), format!("res/{}", parcel.id), prefix.clone());
    let also = move |heard: &Heard<'_>| {
        if let Heard::Message { topic, payload, retain: false } = heard
            && let Some((site, device, rest)) = read::up(topic, &below)
            && rest == wanted
            && let Some(value) = read::payload(payload)
        {
            let records = read::records(&value).iter().map(|record| (format!("{site}/{device}"), record.clone()));
            theirs.lock().unwrap_or_else(PoisonError::into_inner).extend(records);
        }
    };
    let one = !parcel.topic.contains("/_") && !parcel.retain;
    let retained = parcel.retain;
    let act = |_, line: crate::broker::Line| async move {
        let topic = format!("{prefix}{}", parcel.topic);
        line.publish(&topic, parcel.payload, parcel.retain).await.map_err(Fatal::failed)?;
        if retained {
            let topic = &parcel.topic;
            return say(&if args.json {
                json!({"published": topic}).to_string()
            } else {
                format!("published: {topic}")
            });
        }
        let until = Instant::now() + Duration::from_secs(args.wait_s);
        let mut last = None;
        while Instant::now() < until {
            let new = std::mem::take(&mut *results.lock().unwrap_or_else(PoisonError::into_inner));
            for (device, record) in new {
                show(args.json, &device, &record)?;
                let state = read::text(&record["state"]);
                let is_final = !["accepted", "running"].contains(&state.as_str());
                if is_final && one {
                    let good = state == "success";
                    return if good { Ok(()) } else { Err(Fatal::failed(format!("{device}: {state}"))) };
                }
                last = Some(state);
            }
            sleep(Duration::from_millis(50)).await;
        }
        match (one, last) {
            (false, _) => Ok(()),
            (true, None) => Err(Fatal::failed("no result came: the device may be offline; it obeys when it returns")),
            (true, Some(state)) => {
                Err(Fatal::failed(format!("the last result is `{state}`; follow it with `devices --json`")))
            }
        }
    };
    heard::with_also(whom, mqtt, Asks::Nobody, act, also).await
}

fn show(json: bool, device: &str, record: &Value) -> Result<(), Fatal> {
    if json {
        return say(&json!({"device": device, "record": record}).to_string());
    }
    let words = [&record["why"], &record["text"]].map(read::text);
    let words: Vec<&str> = words.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
    let result = if record["result"].is_null() { String::new() } else { format!("  {}", record["result"]) };
    say(format!("{device}  {}  {}{result}", read::text(&record["state"]), words.join(": ")).trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIG: &str = "untrusted comment: a\nRWQ\ntrusted comment: b\nxyz\n";
    const NOW: i64 = 1_795_759_200_000;

    #[test]
    fn a_text_to_sign_names_its_topic_and_becomes_the_message_for_it() {
        let made = inner("plant/pump-1", "restart", &json!({}), "ops", "0123456789abcdef", 60, NOW).expect("made");
        assert_eq!(made.topic, format!("kl/plant/pump-1/dn/cmd/restart/restart-{NOW}"));
        let value: Value = serde_json::from_str(&made.text).expect("json");
        assert_eq!((&value["iseq"], &value["expires_at"]), (&json!(NOW), &json!("2026-11-27T06:01:00.000Z")));
        let parcel = parcel(&made.text, SIG).expect("a message");
        assert_eq!((parcel.topic, parcel.retain), (made.topic, false));
        let payload: Value = serde_json::from_slice(&parcel.payload).expect("json");
        assert_eq!(payload["signed"], json!(made.text));
        assert_eq!(STANDARD.decode(payload["sig"].as_str().expect("sig")).expect("base64"), SIG.as_bytes());
    }

    #[test]
    fn what_devices_would_reject_is_rejected_with_their_reason() {
        let args = json!({"toml": "", "confirm_s": 1});
        let why = inner("plant/pump-1", "config.set", &args, "ops", "", 60, NOW).expect_err("rejected");
        assert!(why.contains("malformed") && why.contains("confirm_s"), "{why}");
        for (to, kind, issuer) in [
            ("plant", "restart", "ops"),
            ("plant/Pump", "restart", "ops"),
            ("plant/p", "no.such", "ops"),
            ("plant/p", "restart", ""),
        ] {
            assert!(inner(to, kind, &json!({}), issuer, "", 60, NOW).is_err(), "{to} {kind} {issuer}");
        }
        assert!(plain("plant/p", "restart", &json!({}), NOW).is_err(), "it needs a signature");
        assert!(plain("plant/p", "ping", &json!({}), NOW).is_ok());
        let made = inner("plant/pump-1", "restart", &json!({}), "ops", "", 60, NOW).expect("made");
        assert!(parcel(&made.text, "no signature").is_err());
        assert!(parcel(&made.text.replace("pump-1", "../x"), SIG).is_err());
    }
}
