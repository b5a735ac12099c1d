//! First boot: one file, `provision.toml`, says who the device is and how it reaches its broker. It is taken over once and
//! then removed from where it lay, for it holds secrets.
//!
//! ```text
//! STATE/provision/kentledge.toml    a layer of the configuration, as if written on the device
//!                 DIGEST/           ca.pem, cert.pem, key.pem, password; readable by the daemon only
//! SETTINGS/provisioned.network, authorized_keys, ntp.conf     for the image's own units; root's, for who may log in, or how
//!                                                             the machine reaches the net, is not the daemon's to change
//! ```

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{config::Config, limits, model::file::hex};

mod settings;

use settings::Network;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Provision {
    site: String,
    device: Option<String>,
    broker: Option<Broker>,
    network: Option<Network>,
    #[serde(default)]
    authorized_keys: Vec<String>,
    #[serde(default)]
    ntp: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Broker {
    url: String,
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// Takes over `file` into the state directory. On failure nothing is changed, and the file stays where it is.
///
/// `check` reads the configuration as it would be; `owner` is the user whose all of it becomes; `settings` is where the
/// machine's own settings go, without it they are not taken.
pub fn take(
    file: &Path,
    state: &Path,
    owner: Option<&str>,
    settings: Option<&Path>,
    check: impl Fn() -> Result<Config, String>,
) -> Result<(), String> {
    let what = |why: String| format!("take over {}: {why}", file.display());
    let size = fs::metadata(file).map_err(|why| what(why.to_string()))?.len();
    if size > limits::CONFIG_BYTES {
        return Err(what(format!("{size} bytes are more than {}", limits::CONFIG_BYTES)));
    }
    let text = fs::read_to_string(file).map_err(|why| what(why.to_string()))?;
    let provision: Provision = toml::from_str(&text).map_err(|why| what(why.to_string()))?;
    let of_machine = settings::render(provision.network.as_ref(), &provision.ntp, &provision.authorized_keys);
    let of_machine = of_machine.map_err(what)?;
    if settings.is_none() && of_machine.iter().any(|(_, text)| !text.is_empty()) {
        tracing::warn!("network, ntp and authorized_keys are not taken: the image's own unit does that");
    }
    let folder = state.join("provision");
    let digest = hex(&Sha256::digest(&text))[..16].to_owned();
    let layer = folder.join("kentledge.toml");
    let before = fs::read(&layer).ok();
    let written = write(&provision, &folder, &digest).map_err(|why| why.to_string());
    if let Err(why) = written.and_then(|()| check().map(|_| ())) {
        // What was there before is in use again.
        let back = match &before {
            Some(bytes) => save(&layer, bytes),
            None => fs::remove_file(&layer),
        };
        let _ = fs::remove_dir_all(folder.join(&digest));
        let back = back.err().filter(|why| why.kind() != io::ErrorKind::NotFound);
        return Err(what(format!("{why}{}", back.map(|why| format!("; {why}")).unwrap_or_default())));
    }
    for (name, text) in settings.iter().flat_map(|_| &of_machine) {
        let folder = settings.unwrap_or(state);
        let written = fs::create_dir_all(folder).and_then(|()| save(&folder.join(name), text.as_bytes()));
        // Read by systemd's own users, and by SSH in the name of whoever logs in.
        let open = written.and_then(|()| fs::set_permissions(folder.join(name), Permissions::from_mode(0o644)));
        open.map_err(|why| what(why.to_string()))?;
    }
    finish(file, state, &folder, &digest, owner).map_err(|why| what(why.to_string()))?;
    tracing::info!(file = %file.display(), "taken over and removed");
    Ok(())
}

fn write(provision: &Provision, folder: &Path, digest: &str) -> io::Result<()> {
    let secrets = folder.join(digest);
    fs::create_dir_all(&secrets)?;
    let mut layer = String::from("# Made from provision.toml.\n[device]\n");
    let line = |layer: &mut String, key: &str, value: &str| {
        let _ = writeln!(layer, "{key} = {}", toml::Value::from(value));
    };
    line(&mut layer, "site", &provision.site);
    provision.device.iter().for_each(|id| line(&mut layer, "id", id));
    if let Some(broker) = &provision.broker {
        layer.push_str("\n[mqtt]\n");
        line(&mut layer, "url", &broker.url);
        broker.username.iter().for_each(|user| line(&mut layer, "username", user));
        for (key, name, text) in [
            ("ca_file", "ca.pem", &broker.ca),
            ("cert_file", "cert.pem", &broker.cert),
            ("key_file", "key.pem", &broker.key),
            ("password_file", "password", &broker.password),
        ] {
            if let Some(text) = text {
                let path = secrets.join(name);
                save(&path, text.as_bytes())?;
                line(&mut layer, key, &path.display().to_string());
            }
        }
    }
    // Last: with it all of it is in use.
    save(&folder.join("kentledge.toml"), layer.as_bytes())
}

/// Whole or not at all, and for the owner only.
fn save(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    sync_folder(path)
}

fn sync_folder(of: &Path) -> io::Result<()> {
    fs::File::open(of.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Gives it to its owner, forgets older secrets, and removes the file.
fn finish(file: &Path, state: &Path, folder: &Path, digest: &str, owner: Option<&str>) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.path().is_dir() && entry.file_name() != digest {
            fs::remove_dir_all(entry.path())?;
        }
    }
    if let Some(name) = owner {
        let user = nix::unistd::User::from_name(name)?.ok_or_else(|| io::Error::other(format!("no user `{name}`")))?;
        let give = |path: &Path| nix::unistd::chown(path, Some(user.uid), Some(user.gid)).map_err(io::Error::from);
        for folder in [state, folder, &folder.join(digest)] {
            give(folder)?;
            for entry in fs::read_dir(folder)?.flatten().filter(|entry| entry.path().is_file()) {
                give(&entry.path())?;
            }
        }
    }
    // Its secrets shall not lie about on a card that anyone can take out.
    let len = fs::metadata(file)?.len();
    let mut old = OpenOptions::new().write(true).open(file)?;
    io::copy(&mut io::Read::take(io::repeat(0), len), &mut old)?;
    old.sync_all()?;
    fs::remove_file(file)?;
    sync_folder(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_file_becomes_a_layer_and_goes_and_a_bad_one_changes_nothing() {
        let dir = tempfile::tempdir().expect("folder");
        let (file, state) = (dir.path().join("provision.toml"), dir.path().join("state"));
        let check = || Config::local_in(&state).map_err(|p| p.iter().map(ToString::to_string).collect());
        fs::write(
            &file,
            "site = \"s\"\ndevice = \"d\"\n[broker]\nurl = \"mqtt://127.0.0.1\"\npassword = \"p\"\nusername = \"u\"\n",
        )
        .expect("write");
        take(&file, &state, None, None, check).expect("taken");
        assert!(!file.exists());
        let config = check().expect("valid");
        assert_eq!((config.device.site.as_str(), config.device.id.as_str()), ("s", "d"));
        let password = config.mqtt.and_then(|m| m.password_file).expect("password");
        assert_eq!(fs::metadata(&password).expect("there").permissions().mode() & 0o777, 0o600);
        for bad in [
            "site = \"S\"",
            "site = \"s\"\n[broker]\nurl = \"http://x\"",
            "site = 1",
            "sit = \"s\"",
            "site = \"s\"\nx = 1",
        ] {
            fs::write(&file, bad).expect("write");
            assert!(take(&file, &state, None, None, check).is_err(), "{bad}");
            assert_eq!(fs::read_to_string(&file).expect("stays"), bad);
            assert_eq!(check().expect("the one before").device.id, "d");
        }
        assert!(password.exists());
    }
}
