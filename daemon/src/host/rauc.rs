//! RAUC on the D-Bus, which writes the other slot, and what the boot loader said about ours.

use std::{collections::HashMap, fs, path::Path, time::Duration};

use semver::Version;
use zbus::{Connection, OwnedVariant, Variant, proxy};

use super::{HostError, logind};

/// Made by `kentledge-slot good`, with the slot in it: this system is healthy, and marked good in the boot loader.
const GOOD: &str = "/run/kentledge-boot/good";
/// Made by `kentledge-preinit` where the boot loader does not name the slot (Jetson): `A` or `B`.
const NOTED: &str = "/run/kentledge-slot";
/// Between two looks at how far an installation is.
const LOOK: Duration = Duration::from_millis(500);
/// An installation that says nothing new for so long hangs: a slot of 512 MiB on a card that takes 1 MiB/s.
const STANDS_STILL: Duration = Duration::from_secs(900);

#[proxy(interface = "de.pengutronix.rauc.Installer", default_service = "de.pengutronix.rauc", default_path = "/")]
trait Installer {
    fn install_bundle(&self, source: &str, args: HashMap<&str, Variant<'_>>) -> zbus::Result<()>;
    fn inspect_bundle(
        &self,
        source: &str,
        args: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<HashMap<String, OwnedVariant>>;
    fn get_primary(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn operation(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn last_error(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn progress(&self) -> zbus::Result<(i32, String, i32)>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn compatible(&self) -> zbus::Result<String>;
}

/// The slot that this machine was started from, as the boot loader names it; `None`: it has none.
pub fn slot() -> Option<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    named(&read("/proc/cmdline"), &read(NOTED))
}

/// The slot by the kernel's command line, else by preinit's note.
fn named(line: &str, note: &str) -> Option<String> {
    let word = line.split_whitespace().find_map(|word| word.strip_prefix("rauc.slot="));
    word.or(Some(note.trim())).filter(|slot| !slot.is_empty()).map(str::to_owned)
}

/// RAUC's name of the slot that does not run (`system.conf.in`: `rootfs.0` is A).
fn other(running: Option<&str>) -> &'static str {
    if running == Some("A") { "rootfs.1" } else { "rootfs.0" }
}

/// The version of the system that runs, by its `os-release`.
pub fn version() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    text.lines().find_map(|line| line.strip_prefix("IMAGE_VERSION=")).map(|v| v.trim_matches('"').to_owned())
}

/// Whether this system was marked good in the boot loader.
pub fn marked_good() -> bool {
    Path::new(GOOD).exists()
}

/// Installs a bundle into the other slot and returns its version; tells how far it is, in percent and words. RAUC verifies
/// the signature before it reads anything else; what is for another board, or older than what runs, is refused before a
/// byte is written. So is a system without a provider that a serving model runs on; `serving` are models and their providers.
///
/// # Errors
/// RAUC is not there, rejects the bundle, stands still, or the boot loader does not prefer the slot.
pub async fn install(
    bus: &str,
    bundle: &Path,
    serving: &[(String, String)],
    mut tell: impl FnMut(i32, &str),
) -> Result<String, HostError> {
    let what = |why: zbus::Error| format!("RAUC: {}", words(&why));
    let connection: Connection = logind::connect_soon(bus).await?;
    let rauc = InstallerProxy::new(&connection).await.map_err(what)?;
    let source = bundle.to_str().ok_or("the bundle's path is no UTF-8")?;
    // One that a daemon before us began goes on without it, and RAUC does not even look at a bundle meanwhile.
    let mut busy = Duration::ZERO;
    while rauc.operation().await.map_err(what)? == "installing" {
        if busy > STANDS_STILL {
            return Err("RAUC is busy with another installation".into());
        }
        tokio::time::sleep(LOOK).await;
        busy += LOOK;
    }
    let info = rauc.inspect_bundle(source, HashMap::new()).await.map_err(what)?;
    let of = |path: &[&str]| {
        let (first, rest) = path.split_first()?;
        text(info.get(*first)?, rest)
    };
    let compatible = of(&["update", "compatible"]).unwrap_or_default();
    let version = of(&["update", "version"]).unwrap_or_default();
    let ours = rauc.compatible().await.map_err(what)?;
    if compatible != ours {
        return Err(HostError(format!("it is for `{compatible}`, and this is `{ours}`")));
    }
    not_older(&version, &self::version().unwrap_or_default())?;
    brings(serving, of(&["update", "description"]).as_deref().unwrap_or_default())?;
    // RAUC 1.13 knows no way to name the bundle that was looked at; it looks again for itself: signature, board, oldest version.
    rauc.install_bundle(source, HashMap::new()).await.map_err(what)?;
    let (mut last, mut still) = ((-1, String::new()), Duration::ZERO);
    loop {
        tokio::time::sleep(LOOK).await;
        let operation = rauc.operation().await.map_err(what)?;
        let (percent, words, _) = rauc.progress().await.map_err(what)?;
        if operation != "installing" {
            break;
        }
        still = if last == (percent, words.clone()) { still + LOOK } else { Duration::ZERO };
        if still > STANDS_STILL {
            return Err(HostError(format!("RAUC stands still at {percent} %: {words}")));
        }
        tell(percent, &words);
        last = (percent, words);
    }
    let error = rauc.last_error().await.map_err(what)?;
    if error.starts_with("Pre-install handler error") {
        // systemd/kentledge-bundle-check is all that it does.
        return Err(HostError(format!("the bundle's content is not what was signed ({error})")));
    }
    if !error.is_empty() {
        return Err(HostError(error));
    }
    // A service that died in between has nothing to say of errors; what counts is what the boot loader will do.
    let primary = rauc.get_primary().await.map_err(what)?;
    if primary != other(slot().as_deref()) {
        return Err(HostError(format!("RAUC ended, and the boot loader prefers {primary}")));
    }
    Ok(version)
}

fn words(why: &zbus::Error) -> String {
    match why {
        zbus::Error::MethodError(_, Some(text), _) => text.clone(),
        other => other.to_string(),
    }
}

/// The string at a path through dictionaries, however many variants they are wrapped in.
fn text(value: &Variant<'_>, path: &[&str]) -> Option<String> {
    match (value, path.split_first()) {
        (Variant::Variant(inner), _) => text(inner, path),
        (Variant::Dict(dict), Some((first, rest))) => {
            let found = dict.iter().find(|(key, _)| text(key, &[]).as_deref() == Some(*first))?;
            text(found.1, rest)
        }
        (Variant::Str(text), None) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

/// Rejects a system that does not say that it brings the provider of each model that serves. Every system brings the processor.
/// The bundle's description ends with `providers: cpu cuda`: RAUC 1.8 leaves sections of one's own out of the manifest that it signs.
fn brings(serving: &[(String, String)], description: &str) -> Result<(), HostError> {
    let says = description.split_once("providers:").map(|(_, says)| says.trim());
    let brought: Vec<&str> = says.unwrap_or_default().split_whitespace().collect();
    let lacks = |(_, provider): &&(String, String)| provider != "cpu" && !brought.contains(&provider.as_str());
    let Some((model, provider)) = serving.iter().find(lacks) else { return Ok(()) };
    let says = match says {
        Some(says) => format!("brings only {says}"),
        None => "does not say that it brings it (`providers: …` in the bundle's description)".into(),
    };
    Err(HostError(format!("model {model} runs on {provider}, and the system {says}")))
}

fn not_older(next: &str, now: &str) -> Result<(), HostError> {
    let parse = |text: &str| {
        Version::parse(text)
            .map_err(|why| HostError(format!("invalid version `{text}`: expected MAJOR.MINOR.PATCH: {why}")))
    };
    let next_version = parse(next)?;
    // A system without a version of its own takes any.
    match Version::parse(now) {
        Ok(now_version) if next_version < now_version => {
            Err(HostError(format!("{next} is older than {now}, which runs")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_is_named_by_the_kernel_line_else_by_preinit() {
        assert_eq!(named("ro rauc.slot=B panic=3", "").as_deref(), Some("B"));
        assert_eq!(named("ro rauc.slot=B panic=3", "A\n").as_deref(), Some("B"));
        assert_eq!(named("console=ttyTCU0 ro", "A\n").as_deref(), Some("A"));
        assert_eq!(named("console=ttyTCU0 ro", ""), None);
    }

    #[test]
    fn what_rauc_says_of_a_bundle_is_found_however_it_is_wrapped() {
        let inner = HashMap::from([("version", Variant::from("1.2.3"))]);
        let wrapped = Variant::Variant(Box::new(Variant::from(HashMap::from([(
            "update",
            Variant::Variant(Box::new(Variant::from(inner))),
        )]))));
        assert_eq!(text(&wrapped, &["update", "version"]).as_deref(), Some("1.2.3"));
        assert_eq!(text(&wrapped, &["update", "compatible"]), None);
        assert_eq!(text(&wrapped, &["update"]), None);
    }

    #[test]
    fn system_without_the_provider_of_a_serving_model_is_refused_and_both_are_named() {
        let on = |provider: &str| [("still@1".to_owned(), "cpu".to_owned()), ("pump@1.2.0".into(), provider.into())];
        assert!(brings(&on("cpu"), "").is_ok() && brings(&[], "").is_ok());
        assert!(brings(&on("tensorrt"), "Kentledge 0.2.0; providers: cpu cuda tensorrt").is_ok());
        let why = |provider, says| brings(&on(provider), says).expect_err("refused").to_string();
        assert_eq!(why("cuda", "providers: cpu"), "model pump@1.2.0 runs on cuda, and the system brings only cpu");
        assert!(why("cuda", "Kentledge 0.2.0").contains("on cuda, and the system does not say that it brings it"));
        assert!(brings(&on("rt"), "providers: tensorrt").is_err(), "a part of a name is no name");
    }

    #[test]
    fn what_is_older_or_no_version_is_refused() {
        assert!(not_older("0.2.0", "0.1.9").is_ok() && not_older("0.1.9", "0.1.9").is_ok());
        assert!(not_older("0.1.10", "0.1.9").is_ok() && not_older("1.0.0", "").is_ok());
        assert!(not_older("0.1.8", "0.1.9").is_err() && not_older("0.2.0-rc1", "0.2.0").is_err());
        assert!(not_older("", "0.1.0").is_err() && not_older("2026.11", "0.1.0").is_err());
    }
}
