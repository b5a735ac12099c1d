//! A sensor on a serial port, played over a pty; the port's stable name is a symbolic link, as udev makes them.
//! Faults: garbage and cut frames (the test writes them), hang-up for as long as wished, a port that comes back under
//! another number.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{OpenOptionsExt, symlink},
    },
    path::PathBuf,
};

use nix::{
    fcntl::OFlag,
    pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
};
use tempfile::TempDir;

use crate::eventually;

pub struct Tty {
    dir: TempDir,
    end: Option<(PtyMaster, OwnedFd)>,
}

impl Default for Tty {
    fn default() -> Self {
        let mut tty = Self { dir: TempDir::new().expect("folder"), end: None };
        tty.plug_in();
        tty
    }
}

impl Tty {
    /// What the daemon opens.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("sensor")
    }

    /// A fresh pty behind the same name.
    pub fn plug_in(&mut self) {
        // Close-on-exec from the start: another test's child must not hold this line open.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let master = posix_openpt(flags).expect("a pty");
        grantpt(&master).expect("grant");
        unlockpt(&master).expect("unlock");
        let name = ptsname_r(&master).expect("name");
        let slave: OwnedFd = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(&name)
            .expect("slave")
            .into();
        let mut settings = tcgetattr(slave.as_fd()).expect("settings");
        cfmakeraw(&mut settings);
        tcsetattr(slave.as_fd(), SetArg::TCSANOW, &settings).expect("raw");
        let _ = fs::remove_file(self.path());
        symlink(name, self.path()).expect("link");
        self.end = Some((master, slave));
    }

    /// The end that the daemon does not see.
    pub(crate) fn master(&mut self) -> Option<&mut PtyMaster> {
        self.end.as_mut().map(|(master, _)| master)
    }

    /// Hangs up; the name is gone until `plug_in`.
    pub fn pull(&mut self) {
        self.end = None;
        let _ = fs::remove_file(self.path());
    }

    /// Writes all of it, waiting for the reader where the line is full.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        eventually("the daemon reads the port", || {
            let (master, _) = self.end.as_mut().expect("plugged in");
            while !rest.is_empty() {
                match master.write(rest) {
                    Ok(n) => rest = &rest[n..],
                    Err(why) if why.kind() == ErrorKind::WouldBlock => return None,
                    Err(why) => panic!("write to the pty: {why}"),
                }
            }
            Some(())
        });
    }

    /// `row(i)` as a line, for each i.
    #[track_caller]
    pub fn rows(&mut self, range: std::ops::Range<u64>, row: impl Fn(u64) -> String) {
        for i in range {
            self.write(format!("{}\n", row(i)).as_bytes());
        }
    }
}
