//! First boot: one file, `provision.toml`, has the device's identity and how it reaches its broker. It is read once and
//! then removed, because it holds secrets. In the image it runs as root, so it follows no link
//! (`folder.rs`).
//!
//! ```text
//! STATE/provision/kentledge.toml    a layer of the configuration, as if written on the device
//!                 DIGEST/           ca.pem, cert.pem, key.pem, password; readable by the daemon only
//! SETTINGS/provisioned.network, authorized_keys, ntp.conf, overlays   for the image's own units; owned by root: the daemon must not
//!                                                             change who may log in, or how the machine reaches the network
//! ```

use std::{fmt::Write as _, io, path::Path};

use nix::unistd::{Gid, Uid};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{config::Config, error::Fatal, limits, model::file::hex};

mod folder;
mod hardware;
mod settings;

use folder::{AsOwner, Folder};
use hardware::Hardware;
use settings::Network;

const LAYER: &str = "kentledge.toml";

crate::error::text_error! {
    /// The file is not taken over; why. Nothing has changed.
    NotTaken;
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Provision {
    site: String,
    device: Option<String>,
    broker: Option<Broker>,
    network: Option<Network>,
    hardware: Option<Hardware>,
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

/// Reads `file` into the state directory and removes it. On failure nothing changes, and the file stays.
///
/// `check` reads the resulting configuration; `owner` is the user who gets the new files; `settings` is the folder for
/// the machine's own settings; without it they are ignored.
///
/// # Errors
/// The file is invalid, the configuration would be invalid, a link or something that is not a plain file is in the way, or
/// the disk is not writable.
pub fn take(
    file: &Path,
    state: &Path,
    owner: Option<&str>,
    settings: Option<&Path>,
    check: impl Fn() -> Result<Config, Fatal>,
) -> Result<(), NotTaken> {
    let what = |why: String| NotTaken(format!("take over {}: {why}", file.display()));
    let because = |why: io::Error| what(why.to_string());
    let owner = owner.map(user).transpose().map_err(because)?;
    let name = file.file_name().ok_or_else(|| what("it is no file".into()))?;
    let from = Folder::open(file.parent().unwrap_or(Path::new("/")), false).map_err(because)?;
    let text = from.read(name, limits::CONFIG_BYTES).map_err(because)?.ok_or_else(|| what("it is not there".into()))?;
    let text = String::from_utf8(text).map_err(|_| what("it is not UTF-8".into()))?;
    let provision: Provision = toml::from_str(&text).map_err(|why| what(why.to_string()))?;
    let of_machine = settings::render(provision.network.as_ref(), &provision.ntp, &provision.authorized_keys);
    let overlays = hardware::render(provision.hardware.as_ref(), &hardware::known()).map_err(what)?;
    let of_machine: Vec<_> = of_machine.map_err(what)?.into_iter().chain([("overlays", overlays)]).collect();
    if settings.is_none() && of_machine.iter().any(|(_, text)| !text.is_empty()) {
        tracing::warn!("network, hardware, ntp and authorized_keys are not taken: the image's own unit does that");
    }
    let digest = hex(&Sha256::digest(&text))[..16].to_owned();
    let open = Folder::open(state, true).and_then(|state| state.owned_by(owner));
    let folder = open.and_then(|state| state.folder("provision")).map_err(because)?;
    let before = folder.read(LAYER.as_ref(), limits::CONFIG_BYTES).map_err(because)?;
    let written = write(&provision, &folder, (state, &digest)).map_err(|why| why.to_string());
    let checked = written.and_then(|()| {
        let _as_owner = AsOwner::begin(owner);
        check().map(drop).map_err(|why| why.text)
    });
    if let Err(why) = checked {
        // Restore the previous layer.
        let back = match &before {
            Some(bytes) => folder.save(LAYER, bytes, 0o600),
            None => folder.remove(LAYER.as_ref()),
        };
        let _ = folder.remove(digest.as_ref());
        return Err(what(format!("{why}{}", back.err().map(|why| format!("; {why}")).unwrap_or_default())));
    }
    if let Some(settings) = settings {
        let settings = Folder::open(settings, true).map_err(because)?;
        for (name, text) in &of_machine {
            // systemd's own users read these files, and sshd reads them as the user who logs in.
            settings.save(name, text.as_bytes(), 0o644).map_err(because)?;
        }
    }
    // Remove the secrets of an earlier provisioning.
    for old in folder.folders().map_err(because)?.iter().filter(|old| old.as_os_str() != digest.as_str()) {
        folder.remove(old).map_err(because)?;
    }
    // Do not leave its secrets on a card that can be taken out.
    from.wipe(name).map_err(because)?;
    tracing::info!(file = %file.display(), "taken over and removed");
    Ok(())
}

fn user(name: &str) -> io::Result<(Uid, Gid)> {
    let user = nix::unistd::User::from_name(name)?.ok_or_else(|| io::Error::other(format!("no user `{name}`")))?;
    Ok((user.uid, user.gid))
}

fn write(provision: &Provision, folder: &Folder, (state, digest): (&Path, &str)) -> io::Result<()> {
    let secrets = folder.folder(digest)?;
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
                secrets.save(name, text.as_bytes(), 0o600)?;
                let path = state.join("provision").join(digest).join(name);
                line(&mut layer, key, &path.display().to_string());
            }
        }
    }
    // Last: this write puts all of it in use.
    folder.save(LAYER, layer.as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt},
    };

    use super::*;

    #[test]
    fn a_good_file_becomes_a_layer_and_goes_and_a_bad_one_changes_nothing() {
        let dir = tempfile::tempdir().expect("folder");
        let (file, state) = (dir.path().join("provision.toml"), dir.path().join("state"));
        let check = || Config::local_in(&state).map_err(|problems| Fatal::problems(&problems));
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
            assert_eq!(check().expect("the previous layer").device.id, "d");
        }
        assert!(password.exists());
    }

    /// A hostile state directory, as root meets it: the daemon's user has put a link, FIFO or hard link at each name.
    struct Hostile {
        dir: tempfile::TempDir,
        owner: nix::unistd::User,
    }

    impl Hostile {
        fn new() -> Option<Self> {
            let owner = nix::unistd::User::from_name("nobody").ok().flatten();
            let Some(owner) = owner.filter(|_| nix::unistd::geteuid().is_root()) else {
                eprintln!("SKIPPED: root and a user `nobody` are needed");
                return None;
            };
            let hostile = Self { dir: tempfile::tempdir().expect("folder"), owner };
            fs::set_permissions(hostile.dir.path(), fs::Permissions::from_mode(0o755)).expect("mode");
            fs::create_dir(hostile.path("root")).expect("folder");
            fs::write(hostile.path("root/host_key"), "secret").expect("write");
            fs::set_permissions(hostile.path("root/host_key"), fs::Permissions::from_mode(0o600)).expect("mode");
            Some(hostile)
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.dir.path().join(name)
        }

        /// Provisions, and checks that root's file is unchanged.
        fn take(&self) -> Result<(), NotTaken> {
            let text = "site = \"s\"\ndevice = \"d\"\nauthorized_keys = []\n[broker]\nurl = \"mqtt://127.0.0.1\"\npassword = \"p\"\n";
            fs::write(self.path("provision.toml"), text).expect("write");
            let (state, settings) = (self.path("state"), self.path("settings"));
            let check = || Config::local_in(&state).map_err(|problems| Fatal::problems(&problems));
            let taken = take(&self.path("provision.toml"), &state, Some("nobody"), Some(&settings), check);
            let key = fs::metadata(self.path("root/host_key")).expect("there");
            assert_eq!((key.uid(), key.mode() & 0o777), (0, 0o600), "root's file has another owner or mode");
            assert_eq!(fs::read_to_string(self.path("root/host_key")).expect("read"), "secret");
            assert_eq!(fs::metadata(self.path("root")).expect("there").uid(), 0, "root's folder has another owner");
            assert_eq!(
                fs::read_dir(self.path("root")).expect("folder").count(),
                1,
                "something was made or removed there"
            );
            taken
        }
    }

    #[test]
    fn provisioning_as_root_follows_no_link_that_the_daemons_user_planted() {
        use std::os::unix::fs::symlink;
        let Some(clean) = Hostile::new() else { return };
        clean.take().expect("taken");
        let layer = fs::metadata(clean.path("state/provision/kentledge.toml")).expect("there");
        assert_eq!((layer.uid(), layer.mode() & 0o777), (clean.owner.uid.as_raw(), 0o600));
        assert_eq!(fs::metadata(clean.path("settings/ntp.conf")).expect("there").uid(), 0);
        // A link beside a written file is not touched; a link at its place is replaced, not followed.
        for name in ["state/x", "state/provision/x", "state/provision/kentledge.toml"] {
            let hostile = Hostile::new().expect("root");
            fs::create_dir_all(hostile.path("state/provision")).expect("folder");
            symlink(hostile.path("root/host_key"), hostile.path(name)).expect("link");
            let taken = hostile.take();
            assert_eq!(taken.is_err(), name.ends_with(".toml"), "{name}: {taken:?}");
        }
        // A link on the path is rejected.
        for name in ["state", "state/provision", "settings"] {
            let hostile = Hostile::new().expect("root");
            if name.contains('/') {
                fs::create_dir_all(hostile.path("state")).expect("folder");
            }
            symlink(hostile.path("root"), hostile.path(name)).expect("link");
            let why = hostile.take().expect_err(name);
            assert!(why.0.contains("symbolic link") && hostile.path("provision.toml").exists(), "{name}: {why}");
        }
        // An older folder of secrets, which is removed, may hold a link; it is not followed.
        let hostile = Hostile::new().expect("root");
        fs::create_dir_all(hostile.path("state/provision/old/deep")).expect("folder");
        symlink(hostile.path("root"), hostile.path("state/provision/old/deep/link")).expect("link");
        symlink(hostile.path("root"), hostile.path("state/provision/link")).expect("link");
        hostile.take().expect("taken");
        assert!(!hostile.path("state/provision/old").exists());
    }

    #[test]
    fn provisioning_as_root_takes_neither_a_second_name_nor_a_fifo_for_a_file() {
        let Some(hostile) = Hostile::new() else { return };
        fs::create_dir_all(hostile.path("state/provision")).expect("folder");
        let layer = hostile.path("state/provision/kentledge.toml");
        fs::hard_link(hostile.path("root/host_key"), &layer).expect("link");
        assert!(hostile.take().is_err_and(|why| why.0.contains("hard links")));
        fs::remove_file(&layer).expect("remove");
        nix::unistd::mkfifo(&layer, nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("fifo");
        assert!(hostile.take().is_err_and(|why| why.0.contains("no plain file")));
        fs::remove_file(&layer).expect("remove");
        // The file itself: root must not wipe what a link names.
        let link = hostile.path("state/link.toml");
        std::os::unix::fs::symlink(hostile.path("root/host_key"), &link).expect("link");
        let check = || Err(Fatal::failed("it is not asked"));
        assert!(
            take(&link, &hostile.path("state"), None, None, check).is_err_and(|why| why.0.contains("symbolic link"))
        );
        assert_eq!(fs::read_to_string(hostile.path("root/host_key")).expect("read"), "secret");
    }

    /// While root checks the configuration, its files are read with the owner's rights.
    #[test]
    fn check_during_provisioning_reads_no_more_than_the_owner_may() {
        let Some(hostile) = Hostile::new() else { return };
        let file = hostile.path("provision.toml");
        fs::write(&file, "site = \"s\"\n").expect("write");
        let read = || fs::read(hostile.path("root/host_key")).map_err(|why| why.kind());
        let check = || Err(Fatal::failed(format!("{:?}", read())));
        let why = take(&file, &hostile.path("state"), Some("nobody"), None, check).expect_err("read");
        assert!(why.0.contains("PermissionDenied"), "{why}");
        assert!(fs::read(hostile.path("root/host_key")).is_ok(), "afterwards it is root again");
    }
}
