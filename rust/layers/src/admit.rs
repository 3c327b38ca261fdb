//! Names and kinds: what an entry asks for, and whether that is allowed at all.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::error::{shown, Code, Error, Result};
use crate::names::{check_symlink_target, meaning, normalise, Meaning};
use crate::tar::{Entry, Kind};
use crate::warnings::{Warning, Warnings};
use crate::Options;

/// Memory beside a name that is held, bytes.
pub const HELD_OVERHEAD: u64 = 64;

/// What an admitted entry does.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Make or keep a directory; an empty path is the destination.
    Directory,
    /// Make a file with the entry's data.
    Regular,
    /// Make a symlink to the entry's link.
    Symlink,
    /// Make another name of the file at this normalised path.
    HardLink(Vec<u8>),
    /// Make a FIFO.
    Fifo,
    /// Hide this name of lower layers beside the entry.
    Whiteout(Vec<u8>),
    /// Hide what lower layers have in the entry's directory.
    Opaque,
    /// Nothing, and this warning is why.
    Skip(Warning),
}

/// An entry that may be applied.
#[derive(Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Normalised path.
    pub path: Vec<u8>,
    /// What to do there.
    pub action: Action,
}

/// Decide what `entry` does.
///
/// # Errors
/// `name_invalid`, `path_escape`, `path_too_long`, `whiteout_invalid`, `device_node`, `root_replacement`,
/// `hardlink_invalid`, `forbidden_xattr`.
pub fn admit(entry: &Entry, options: &Options) -> Result<Admitted> {
    let path = normalise(&entry.name)?;
    let action = match meaning(&path)? {
        Meaning::Aufs => {
            return Ok(Admitted {
                path,
                action: Action::Skip(Warning::AufsMetadataIgnored),
            })
        }
        Meaning::Plain => plain(entry, &path, options)?,
        _ if entry.kind != Kind::Regular => {
            let detail = format!("the whiteout {} is no regular file", shown(&entry.name));
            return Err(Error::refused(Code::WhiteoutInvalid, detail));
        }
        Meaning::Whiteout(hidden) => Action::Whiteout(hidden.to_vec()),
        Meaning::Opaque => Action::Opaque,
    };
    check_xattrs(entry)?;
    Ok(Admitted { path, action })
}

fn plain(entry: &Entry, path: &[u8], options: &Options) -> Result<Action> {
    if path.is_empty() && entry.kind != Kind::Directory {
        let detail = format!("{} would replace the root directory", shown(&entry.name));
        return Err(Error::refused(Code::RootReplacement, detail));
    }
    Ok(match entry.kind {
        Kind::Regular => Action::Regular,
        Kind::Directory => Action::Directory,
        Kind::Fifo => Action::Fifo,
        Kind::Symlink => {
            check_symlink_target(&entry.name, &entry.link)?;
            Action::Symlink
        }
        Kind::HardLink => {
            let target = normalise(&entry.link)?;
            if target.is_empty() || target == path {
                return Err(hardlink_invalid(
                    &entry.name,
                    &entry.link,
                    "is itself or the root directory",
                ));
            }
            Action::HardLink(target)
        }
        Kind::Device if options.skip_devices => Action::Skip(Warning::DeviceSkipped),
        Kind::Device => {
            return Err(Error::refused(
                Code::DeviceNode,
                format!("{} is a device", shown(&entry.name)),
            ));
        }
    })
}

/// The refusal of a hard link.
pub fn hardlink_invalid(name: &[u8], target: &[u8], why: &str) -> Error {
    let detail = format!(
        "the target {} of the hard link {} {why}",
        shown(target),
        shown(name)
    );
    Error::refused(Code::HardlinkInvalid, detail)
}

/// The layers become lower layers of an overlay mount, which such attributes would steer.
/// Source: Linux, Documentation/filesystems/overlayfs.rst, "Redirecting" and "Metadata only copy up".
fn check_xattrs(entry: &Entry) -> Result<()> {
    for (name, _) in &entry.xattrs {
        if [&b"trusted.overlay."[..], b"user.overlay."]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            let detail = format!(
                "{} has the extended attribute {}",
                shown(&entry.name),
                shown(name)
            );
            return Err(Error::refused(Code::ForbiddenXattr, detail));
        }
    }
    Ok(())
}

/// Whether an extended attribute is one that layers may set.
pub fn xattr_allowed(name: &[u8], options: &Options) -> bool {
    // A capability is a set-id bit by another name: without the owner it would be somebody else's.
    name.starts_with(b"user.") || (name == b"security.capability" && options.ownership)
}

/// What pass one learns of a whole layer.
#[derive(Debug)]
pub struct Survey<'a> {
    options: &'a Options,
    /// Keyed hashes of the paths seen, and whether the last entry there was a directory.
    seen: HashMap<u64, bool>,
    hasher: RandomState,
    /// Whiteouts in order.
    pub whiteouts: Vec<Admitted>,
    /// Bytes of names that the second pass has to hold.
    held: u64,
}

impl<'a> Survey<'a> {
    /// Begin a layer.
    pub fn new(options: &'a Options) -> Self {
        Self {
            options,
            seen: HashMap::new(),
            hasher: RandomState::new(),
            whiteouts: Vec::new(),
            held: 0,
        }
    }

    /// Admit one entry and note its warnings.
    pub fn add(&mut self, entry: &Entry, warnings: &mut Warnings) -> Result<()> {
        let admitted = admit(entry, self.options)?;
        match &admitted.action {
            Action::Skip(warning) => warnings.add(*warning, &admitted.path),
            Action::Whiteout(_) | Action::Opaque => {
                self.hold(&admitted.path)?;
                self.whiteouts.push(admitted);
            }
            action => {
                let is_directory = *action == Action::Directory;
                if is_directory {
                    self.hold(&admitted.path)?;
                }
                let before = self
                    .seen
                    .insert(self.hasher.hash_one(&admitted.path), is_directory);
                if before.is_some_and(|directory| !(directory && is_directory)) {
                    warnings.add(Warning::DuplicateEntry, &admitted.path);
                }
            }
        }
        Ok(())
    }

    /// Names of whiteouts and directories are kept until the end of a layer, so they are limited together.
    fn hold(&mut self, path: &[u8]) -> Result<()> {
        self.held += path.len() as u64 + HELD_OVERHEAD;
        if self.held > self.options.limits.held_bytes {
            let detail = "the names of a layer's directories and whiteouts take too much memory";
            return Err(Error::refused(Code::LimitExceeded, detail));
        }
        Ok(())
    }
}
