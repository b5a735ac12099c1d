//! Folders held by their descriptor. Provisioning runs as root in a state directory that belongs to the daemon's user, and that
//! user may be an attacker. So no link is followed, on the path to a folder or in it, and only plain files with one hard link
//! are read, chowned or overwritten. A new file is written under an unused name in the same folder, then renamed.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    path::{Component, Path},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, renameat},
    sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat},
    unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat},
};

use crate::host::Defence;

/// The owner of new files and folders; `None`: the user of this process.
pub type Owner = Option<(Uid, Gid)>;

/// A folder held by its descriptor, so a rename does not change which folder it is.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    owner: Owner,
}

const HERE: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);
const READ: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);
const FILE: OFlag = OFlag::O_CLOEXEC.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

/// Opens a name in a folder; a link is not followed.
fn open_in(folder: &OwnedFd, name: &OsStr, how: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    let no_link = if Defence::NoFollow.stands() { OFlag::O_NOFOLLOW } else { OFlag::empty() };
    openat(folder, name, how | no_link, mode)
}

fn private() -> Mode {
    Mode::from_bits_truncate(0o700)
}

/// The likely kind of a path component that is not a folder.
fn is_link(name: &OsStr, why: Errno) -> io::Error {
    match why {
        Errno::ENOTDIR | Errno::ELOOP => {
            io::Error::other(format!("{} is a symbolic link or no folder; give the real path", name.display()))
        }
        other => other.into(),
    }
}

impl Folder {
    /// Opens a folder. No component of its path may be a symbolic link. `make`: missing folders are created, readable by
    /// everyone, like the folders above a state directory.
    pub fn open(path: &Path, make: bool) -> io::Result<Self> {
        let from = if path.is_absolute() { "/" } else { "." };
        let mut fd = nix::fcntl::open(from, HERE, Mode::empty())?;
        for component in path.components() {
            let name = match component {
                Component::Normal(name) => name,
                Component::ParentDir => OsStr::new(".."),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            };
            if make {
                made(mkdirat(&fd, name, Mode::from_bits_truncate(0o755)))?;
            }
            fd = open_in(&fd, name, HERE, Mode::empty()).map_err(|why| is_link(name, why))?;
        }
        // Only the last component must be readable.
        Ok(Self { fd: open_in(&fd, OsStr::new("."), READ, Mode::empty())?, owner: None })
    }

    /// Sets the owner of the folder and of what is created in it later.
    pub fn owned_by(mut self, owner: Owner) -> io::Result<Self> {
        self.owner = owner;
        if let Some((uid, gid)) = owner {
            fchown(&self.fd, Some(uid), Some(gid))?;
        }
        Ok(self)
    }

    /// Opens a subfolder; a missing one is created, accessible by its owner only.
    pub fn folder(&self, name: &str) -> io::Result<Self> {
        made(mkdirat(&self.fd, name, private()))?;
        let name = OsStr::new(name);
        let fd = open_in(&self.fd, name, READ, Mode::empty()).map_err(|why| is_link(name, why))?;
        Self { fd, owner: None }.owned_by(self.owner)
    }

    /// Reads a plain file with one hard link and at most `most` bytes; `None` if it does not exist.
    pub fn read(&self, name: &OsStr, most: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match self.plain(name, OFlag::O_RDONLY) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let size = file.metadata()?.len();
        if size > most {
            return Err(io::Error::other(format!("{size} bytes are more than {most}")));
        }
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Opens a plain file with one hard link.
    fn plain(&self, name: &OsStr, how: OFlag) -> io::Result<File> {
        let file: File = match open_in(&self.fd, name, how | FILE, Mode::empty()) {
            Ok(fd) => fd.into(),
            Err(Errno::ELOOP) => return Err(io::Error::other(format!("{} is a symbolic link", name.display()))),
            Err(why) => return Err(why.into()),
        };
        let stat: FileStat = fstat(&file)?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(io::Error::other(format!("{} is no plain file", name.display())));
        }
        if stat.st_nlink != 1 {
            return Err(io::Error::other(format!("{} has {} names (hard links)", name.display(), stat.st_nlink)));
        }
        Ok(file)
    }

    /// Writes a file atomically, with this mode and owner from the start.
    pub fn save(&self, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
        let fresh = format!(".{name}.{}", crate::host::nonce());
        let new = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | FILE;
        let mut file: File = open_in(&self.fd, fresh.as_ref(), new, Mode::from_bits_truncate(0o600))?.into();
        let written = self.fill(&mut file, bytes, mode);
        let moved = written.and_then(|()| Ok(renameat(&self.fd, fresh.as_str(), &self.fd, name)?));
        if let Err(why) = moved {
            let _ = unlinkat(&self.fd, fresh.as_str(), UnlinkatFlags::NoRemoveDir);
            return Err(why);
        }
        self.sync()
    }

    fn fill(&self, file: &mut File, bytes: &[u8], mode: u32) -> io::Result<()> {
        fchmod(&*file, Mode::from_bits_truncate(mode))?;
        if let Some((uid, gid)) = self.owner {
            fchown(&*file, Some(uid), Some(gid))?;
        }
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Overwrites a plain file with zeroes and removes it.
    pub fn wipe(&self, name: &OsStr) -> io::Result<()> {
        let mut file = self.plain(name, OFlag::O_WRONLY)?;
        let len = file.metadata()?.len();
        io::copy(&mut io::repeat(0).take(len), &mut file)?;
        file.sync_all()?;
        unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)?;
        self.sync()
    }

    /// Removes what has this name, if anything: a folder with its content; of a link only the link.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Err(Errno::ENOENT) => return Ok(()),
            other => return Ok(other?),
        }
        let inner = Self { fd: open_in(&self.fd, name, READ, Mode::empty())?, owner: None };
        for (name, _) in inner.entries()? {
            inner.remove(&name)?;
        }
        Ok(unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir)?)
    }

    /// Names of the folders in it.
    pub fn folders(&self) -> io::Result<Vec<OsString>> {
        let all = self.entries()?.into_iter();
        Ok(all.filter(|(_, is_folder)| *is_folder).map(|(name, _)| name).collect())
    }

    fn entries(&self) -> io::Result<Vec<(OsString, bool)>> {
        // Use the descriptor's own path, which no rename changes.
        let dir = std::fs::read_dir(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))?;
        dir.map(|entry| entry.and_then(|entry| Ok((entry.file_name(), entry.file_type()?.is_dir())))).collect()
    }

    fn sync(&self) -> io::Result<()> {
        File::from(self.fd.try_clone()?).sync_all()
    }
}

fn made(done: nix::Result<()>) -> io::Result<()> {
    match done {
        Err(Errno::EEXIST) => Ok(()),
        other => Ok(other?),
    }
}

/// While this value lives, files are read with the rights of the owner only: the content of a file that only root may read
/// must not end up in an error's text. Without the capability to change the user it has no effect.
pub struct AsOwner(Option<(Uid, Gid)>);

impl AsOwner {
    /// Starts this, for the current thread.
    pub fn begin(owner: Owner) -> Self {
        let Some((uid, gid)) = owner.filter(|_| nix::unistd::geteuid().is_root()) else { return Self(None) };
        let before_gid = nix::unistd::setfsgid(gid);
        let before_uid = nix::unistd::setfsuid(uid);
        Self(Some((before_uid, before_gid)))
    }
}

impl Drop for AsOwner {
    fn drop(&mut self) {
        if let Some((uid, gid)) = self.0 {
            nix::unistd::setfsuid(uid);
            nix::unistd::setfsgid(gid);
        }
    }
}
