//! Putting the entries of a checked layer in place, from descriptors only.
//!
//! The last component of a path is never followed and a file is never opened where another one lies: what is
//! there is removed, then the new one is created exclusively. Owner comes before mode (setting an owner clears
//! set-id bits), then extended attributes, then time; directory times come after everything else.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    chownat, fchown, fsetxattr, fstat, futimens, linkat, mkdirat, mknodat, openat, statat,
    symlinkat, utimensat, AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::admit::{admit, hardlink_invalid, xattr_allowed, Action, Admitted};
use crate::error::{shown, Error, Result};
use crate::held::{failed, find_held, identity, set_mode, times, Closed, Held, WORKABLE};
use crate::names::split;
use crate::remove::{empty, remove};
use crate::tar::{Entry, TarReader};
use crate::walk::{Missing, Root, DIRECTORY};
use crate::warnings::{Warning, Warnings};
use crate::Options;

const SET_ID: u32 = 0o6000;

/// Applies one layer.
pub struct Applier<'a> {
    root: &'a mut Root,
    options: &'a Options,
    warnings: &'a mut Warnings,
    closed: &'a mut Closed,
    held: Vec<Held>,
    buffer: Vec<u8>,
}

impl<'a> Applier<'a> {
    /// Work below `root`.
    pub fn new(
        root: &'a mut Root,
        options: &'a Options,
        warnings: &'a mut Warnings,
        closed: &'a mut Closed,
    ) -> Self {
        Self {
            root,
            options,
            warnings,
            closed,
            held: Vec::new(),
            buffer: vec![0; crate::stream::CHUNK],
        }
    }

    /// Remove what the layer hides. Comes before all its additions, so it hits lower layers only.
    pub fn hide(&mut self, whiteouts: &[Admitted]) -> Result<()> {
        for whiteout in whiteouts {
            let Some(parent) = self.root.find(split(&whiteout.path).0, Missing::Report)? else {
                continue;
            };
            let outcome = match &whiteout.action {
                Action::Whiteout(hidden) => remove(&*parent, hidden),
                Action::Opaque => empty(&*parent),
                _ => Ok(()),
            };
            outcome.map_err(|error| failed(&whiteout.path, error))?;
            self.root.forget();
        }
        Ok(())
    }

    /// Make everything that the layer adds.
    pub fn add<R: Read>(&mut self, reader: &mut TarReader<R>) -> Result<()> {
        let mut entry = Entry::default();
        while reader.next(&mut entry)? {
            let admitted = admit(&entry, self.options)?;
            self.add_one(&entry, &admitted, reader)?;
        }
        Ok(())
    }

    fn add_one<R: Read>(
        &mut self,
        entry: &Entry,
        admitted: &Admitted,
        reader: &mut TarReader<R>,
    ) -> Result<()> {
        let path = &admitted.path[..];
        if matches!(
            admitted.action,
            Action::Whiteout(_) | Action::Opaque | Action::Skip(_)
        ) {
            return Ok(());
        }
        if path.is_empty() {
            let root = self.root.directory();
            return self.finish_directory(&root, entry, path);
        }
        let (directory, name) = split(path);
        let parent = self.parent(directory)?;
        match &admitted.action {
            Action::Directory => self.directory(&parent, name, entry, path),
            Action::Regular => self.regular(&parent, name, entry, path, reader),
            Action::Symlink => self.symlink(&parent, name, entry, path),
            Action::HardLink(target) => self.hard_link(&parent, name, target, path),
            Action::Fifo => self.fifo(&parent, name, entry, path),
            Action::Whiteout(_) | Action::Opaque | Action::Skip(_) => Ok(()),
        }
    }

    fn parent(&mut self, directory: &[u8]) -> Result<Rc<OwnedFd>> {
        let missing = Missing::Make {
            chown: self.options.ownership,
        };
        let found = self.root.find(directory, missing)?;
        found.ok_or_else(|| failed(directory, Errno::NOENT))
    }

    /// Create with `create`; if something is there, remove it and try once more.
    fn replace<T>(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        create: impl Fn() -> std::result::Result<T, Errno>,
    ) -> std::result::Result<T, Errno> {
        match create() {
            Err(Errno::EXIST) => {
                remove(parent, name)?;
                self.root.forget();
                create()
            }
            other => other,
        }
    }

    fn directory(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        path: &[u8],
    ) -> Result<()> {
        let make = || match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            // A directory that is there stays, with its contents.
            Err(Errno::EXIST) => {
                openat(parent, name, DIRECTORY, Mode::empty()).map_err(|error| match error {
                    Errno::NOTDIR | Errno::LOOP => Errno::EXIST,
                    other => other,
                })
            }
            Err(error) => Err(error),
            Ok(()) => openat(parent, name, DIRECTORY, Mode::empty()),
        };
        let directory = self
            .replace(parent, name, make)
            .map_err(|error| failed(path, error))?;
        self.finish_directory(&directory, entry, path)
    }

    fn finish_directory(&mut self, directory: &OwnedFd, entry: &Entry, path: &[u8]) -> Result<()> {
        let mode = self.own(directory.as_fd(), entry, path)?;
        let identity = identity(&fstat(directory).map_err(|error| failed(path, error))?);
        if self.options.ownership {
            set_mode(directory.as_fd(), mode, path)?;
        } else {
            set_mode(directory.as_fd(), mode | WORKABLE, path)?;
            self.closed
                .note(path, identity, mode, self.options.limits.held_bytes)?;
        }
        self.set_xattrs(directory.as_fd(), entry, path)?;
        self.held.push(Held {
            path: path.to_vec(),
            identity,
            mtime: entry.mtime,
        });
        Ok(())
    }

    fn regular<R: Read>(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        path: &[u8],
        reader: &mut TarReader<R>,
    ) -> Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || openat(parent, name, flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(
            self.replace(parent, name, create)
                .map_err(|error| failed(path, error))?,
        );
        loop {
            let count = reader.read_data(&mut self.buffer)?;
            if count == 0 {
                break;
            }
            file.write_all(&self.buffer[..count])
                .map_err(|error| Error::io(shown(path), error))?;
        }
        self.finish(file.as_fd(), entry, path)
    }

    fn fifo(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry, path: &[u8]) -> Result<()> {
        let create = || mknodat(parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0);
        self.replace(parent, name, create)
            .map_err(|error| failed(path, error))?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fifo =
            openat(parent, name, flags, Mode::empty()).map_err(|error| failed(path, error))?;
        self.finish(fifo.as_fd(), entry, path)
    }

    fn symlink(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry, path: &[u8]) -> Result<()> {
        let create = || symlinkat(&entry.link[..], parent, name);
        self.replace(parent, name, create)
            .map_err(|error| failed(path, error))?;
        if self.options.ownership {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            chownat(
                parent,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(|error| failed(path, error))?;
        }
        if !entry.xattrs.is_empty() {
            self.warnings.add(Warning::XattrIgnored, path);
        }
        utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed(path, error))
    }

    fn hard_link(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        target: &[u8],
        path: &[u8],
    ) -> Result<()> {
        let invalid = |why| hardlink_invalid(path, target, why);
        let (directory, target_name) = split(target);
        let source = self
            .root
            .find(directory, Missing::Report)?
            .ok_or_else(|| invalid("is missing"))?;
        let found = match statat(&*source, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Err(invalid("is missing")),
            Err(error) => return Err(failed(path, error)),
        };
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            return Err(invalid("is a directory"));
        }
        let same = |one: &OwnedFd| {
            fstat(one)
                .map(|status| identity(&status))
                .map_err(|error| failed(path, error))
        };
        if name == target_name && same(parent)? == same(&source)? {
            return Err(invalid("is the entry itself"));
        }
        let create = || linkat(&*source, target_name, parent, name, AtFlags::empty());
        self.replace(parent, name, create)
            .map_err(|error| match error {
                // The target was inside the directory that the link replaced.
                Errno::NOENT => invalid("is missing"),
                error => failed(path, error),
            })
    }

    /// Attributes of a file or FIFO, in the order that keeps them.
    fn finish(&mut self, file: BorrowedFd<'_>, entry: &Entry, path: &[u8]) -> Result<()> {
        let mode = self.own(file, entry, path)?;
        set_mode(file, mode, path)?;
        self.set_xattrs(file, entry, path)?;
        futimens(file, &times(entry.mtime)).map_err(|error| failed(path, error))
    }

    /// Set the owner if that is wanted; the mode that is then right.
    fn own(&mut self, file: BorrowedFd<'_>, entry: &Entry, path: &[u8]) -> Result<u32> {
        if self.options.ownership {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            fchown(file, Some(uid), Some(gid)).map_err(|error| failed(path, error))?;
            return Ok(entry.mode);
        }
        if entry.mode & SET_ID != 0 {
            self.warnings.add(Warning::SetidDropped, path);
        }
        Ok(entry.mode & !SET_ID)
    }

    fn set_xattrs(&mut self, file: BorrowedFd<'_>, entry: &Entry, path: &[u8]) -> Result<()> {
        for (name, value) in &entry.xattrs {
            if !xattr_allowed(name, self.options) {
                self.warnings.add(Warning::XattrIgnored, path);
                continue;
            }
            match fsetxattr(file, &name[..], value, XattrFlags::empty()) {
                Ok(()) => {}
                // The file system, the kind of file or the attribute's form does not admit it.
                Err(
                    Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL | Errno::RANGE | Errno::TOOBIG,
                ) => {
                    self.warnings.add(Warning::XattrIgnored, path);
                }
                Err(error) => return Err(failed(path, error)),
            }
        }
        Ok(())
    }

    /// Give the directories their times, now that nothing is made in them any more.
    pub fn finish_directories(self) -> Result<()> {
        for held in self.held {
            if let Some(directory) = find_held(self.root, &held.path, held.identity)? {
                futimens(&directory, &times(held.mtime))
                    .map_err(|error| failed(&held.path, error))?;
            }
        }
        Ok(())
    }
}
