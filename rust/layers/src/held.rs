//! Directories to come back to, and the small change of setting attributes.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{fchmod, fstat, openat, Mode, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use crate::admit::HELD_OVERHEAD;
use crate::error::{shown, Code, Error, Result};
use crate::names::split;
use crate::walk::{Missing, Root, DIRECTORY};

/// What the owner of a directory needs to work in it.
pub const WORKABLE: u32 = 0o700;

/// Which directory, whatever its name: device and inode.
pub type Identity = (u64, u64);

/// A directory whose time waits for the end of the layer.
pub struct Held {
    /// Normalised path.
    pub path: Vec<u8>,
    /// The directory itself.
    pub identity: Identity,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
}

/// Directories whose mode would keep an unprivileged owner from working in them.
///
/// They stay workable until the last layer is applied.
#[derive(Default)]
pub struct Closed {
    /// Path and mode.
    modes: HashMap<Identity, (Vec<u8>, u32)>,
    bytes: u64,
}

impl Closed {
    /// Note the final mode of a directory; the last one counts. `limit` is for the memory of all, bytes.
    pub fn note(&mut self, path: &[u8], identity: Identity, mode: u32, limit: u64) -> Result<()> {
        if mode & WORKABLE == WORKABLE {
            self.modes.remove(&identity);
            return Ok(());
        }
        if self.modes.insert(identity, (path.to_vec(), mode)).is_none() {
            self.bytes += path.len() as u64 + HELD_OVERHEAD;
        }
        if self.bytes > limit {
            return Err(Error::refused(
                Code::LimitExceeded,
                "the names of closed directories take too much memory",
            ));
        }
        Ok(())
    }

    /// Close them. The deepest come first: a closed directory cannot be walked through.
    pub fn close(self, root: &mut Root) -> Result<()> {
        let mut closed: Vec<_> = self.modes.into_iter().collect();
        closed.sort_by(|(_, (one, _)), (_, (other, _))| other.cmp(one));
        for (identity, (path, mode)) in closed {
            if let Some(directory) = find_held(root, &path, identity)? {
                set_mode(directory.as_fd(), mode, &path)?;
            }
        }
        Ok(())
    }
}

/// The directory at `path`, unless a later entry replaced it by something else.
pub fn find_held(root: &mut Root, path: &[u8], wanted: Identity) -> Result<Option<OwnedFd>> {
    let directory = if path.is_empty() {
        root.directory()
            .try_clone()
            .map_err(|error| Error::io(shown(path), error))?
    } else {
        let (parent, name) = split(path);
        let parent = match root.find(parent, Missing::Report) {
            Ok(Some(parent)) => parent,
            // A later entry put something else in the way.
            Ok(None) | Err(Error::Refused { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        match openat(&*parent, name, DIRECTORY, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(failed(path, error)),
        }
    };
    let status = fstat(&directory).map_err(|error| failed(path, error))?;
    Ok((identity(&status) == wanted).then_some(directory))
}

/// Device and inode.
pub fn identity(status: &Stat) -> Identity {
    (status.st_dev, status.st_ino)
}

/// Set all twelve bits, whatever the umask.
pub fn set_mode(file: BorrowedFd<'_>, mode: u32, path: &[u8]) -> Result<()> {
    fchmod(file, Mode::from_raw_mode(mode)).map_err(|error| failed(path, error))
}

/// Time of access and of change, both that of the entry.
pub fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// A system call about the entry at `path` failed.
pub fn failed(path: &[u8], error: Errno) -> Error {
    Error::io(shown(path), error)
}
