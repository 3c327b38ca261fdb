//! Finding directories below a root that may be full of hostile links.
//!
//! Paths resolve as under `chroot`, one component at a time from a descriptor of the root, each opened
//! without following: absolute targets start at the root and `..` at the root stays there. The kernel never
//! sees a path of more than one component, so nothing outside can be reached, even while another process
//! renames things. (`openat2` with `RESOLVE_IN_ROOT` resolves alike but cannot make missing directories, and
//! sandboxes often refuse it.)

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{fchmod, mkdirat, open, openat, readlinkat, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{shown, Code, Error, Result};

/// Most symlinks followed for one path.
const MAX_LINKS: usize = 40;
/// Deepest directory that is resolved.
const MAX_DEPTH: usize = 4096;
/// Descriptors kept of the directories on the way; deeper ones are found again when `..` needs them.
const HELD: usize = 64;

/// Flags to look at a directory without following a link in its place.
pub const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const STEP: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What to do about directories that are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Make them 0755.
    Make {
        /// Give them to 0:0.
        chown: bool,
    },
    /// Report them.
    Report,
}

/// The directory that everything happens in.
pub struct Root {
    directory: Rc<OwnedFd>,
    /// The directory found last: the entries of an archive mostly lie side by side.
    last: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

impl Root {
    /// Open the directory at `path`, which is trusted (as `/proc/self/fd/N` is).
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(path, flags, Mode::empty())
            .map_err(|error| Error::io(path.display().to_string(), error))?;
        Ok(Self {
            directory: Rc::new(directory),
            last: None,
        })
    }

    /// The root's own descriptor, readable.
    pub fn directory(&self) -> Rc<OwnedFd> {
        self.directory.clone()
    }

    /// Find the directory at `path`, its last component included in what is followed.
    ///
    /// Returns nothing when it does not exist and `missing` says to report that.
    ///
    /// # Errors
    /// `not_a_directory`, `symlink_loop`, `path_too_long`, or the system's own.
    pub fn find(&mut self, path: &[u8], missing: Missing) -> Result<Option<Rc<OwnedFd>>> {
        if path.is_empty() {
            return Ok(Some(self.directory()));
        }
        if let Some((known, directory)) = &self.last {
            if known == path {
                return Ok(Some(directory.clone()));
            }
        }
        let mut walk = Walk::new(&self.directory, path);
        while let Some(part) = walk.todo.pop() {
            if !walk.step(part, missing)? {
                return Ok(None);
            }
        }
        let found = walk.here();
        self.last = Some((path.to_vec(), found.clone()));
        Ok(Some(found))
    }

    /// Forget what was found: needed after anything was removed.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// Open the file at `path` for reading, following links inside the root; nothing when it is not there.
    ///
    /// # Errors
    /// `not_a_file` when it is neither a regular file nor missing, and those of `find`.
    pub fn open_file(&self, path: &[u8]) -> Result<Option<File>> {
        let mut walk = Walk::new(&self.directory, path);
        while let Some(part) = walk.todo.pop() {
            if !walk.todo.is_empty() || part == b".." {
                if !walk.step(part, Missing::Report)? {
                    return Ok(None);
                }
                continue;
            }
            match readlinkat(&*walk.here(), &part[..], Vec::new()) {
                Ok(target) => walk.follow(target.as_bytes())?,
                Err(Errno::INVAL) => return open_regular(&walk.here(), &part, path).map(Some),
                Err(Errno::NOENT) => return Ok(None),
                Err(error) => return Err(Error::io(shown(path), error)),
            }
        }
        Err(not_a_file(path))
    }
}

fn open_regular(directory: &OwnedFd, name: &[u8], path: &[u8]) -> Result<File> {
    // Not blocking, so that a FIFO or a device in its place cannot hold us up.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(
        openat(directory, name, flags, Mode::empty())
            .map_err(|error| Error::io(shown(path), error))?,
    );
    let status = file
        .metadata()
        .map_err(|error| Error::io(shown(path), error))?;
    if status.is_file() {
        Ok(file)
    } else {
        Err(not_a_file(path))
    }
}

fn not_a_file(path: &[u8]) -> Error {
    Error::refused(
        Code::NotAFile,
        format!("{} is no regular file", shown(path)),
    )
}

/// One path being resolved.
struct Walk<'a> {
    root: &'a Rc<OwnedFd>,
    path: &'a [u8],
    /// Components still to go, the next one last.
    todo: Vec<Vec<u8>>,
    /// Names of the real directories from the root to here.
    names: Vec<Vec<u8>>,
    /// The deepest of them, opened.
    held: VecDeque<Rc<OwnedFd>>,
    links: usize,
}

impl<'a> Walk<'a> {
    fn new(root: &'a Rc<OwnedFd>, path: &'a [u8]) -> Self {
        let mut walk = Self {
            root,
            path,
            todo: Vec::new(),
            names: Vec::new(),
            held: VecDeque::new(),
            links: 0,
        };
        walk.push(path);
        walk
    }

    fn push(&mut self, path: &[u8]) {
        let parts = path
            .split(|&byte| byte == b'/')
            .filter(|part| !matches!(part, [] | [b'.']));
        self.todo.extend(parts.rev().map(<[u8]>::to_vec));
    }

    fn here(&self) -> Rc<OwnedFd> {
        self.held.back().unwrap_or(self.root).clone()
    }

    /// Go one component further; false when it does not exist.
    fn step(&mut self, part: Vec<u8>, missing: Missing) -> Result<bool> {
        if part == b".." {
            return self.up().map(|()| true);
        }
        match openat(&*self.here(), &part[..], STEP, Mode::empty()) {
            Ok(directory) => self.enter(part, directory).map(|()| true),
            Err(Errno::NOENT) => match missing {
                Missing::Report => Ok(false),
                Missing::Make { chown } => self.make(part, chown).map(|()| true),
            },
            Err(Errno::NOTDIR | Errno::LOOP) => {
                match readlinkat(&*self.here(), &part[..], Vec::new()) {
                    Ok(target) => self.follow(target.as_bytes()).map(|()| true),
                    Err(Errno::INVAL) => Err(Error::refused(
                        Code::NotADirectory,
                        format!(
                            "{} leads through {}, which is no directory",
                            shown(self.path),
                            shown(&part)
                        ),
                    )),
                    Err(error) => Err(self.failed(error)),
                }
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    fn enter(&mut self, part: Vec<u8>, directory: OwnedFd) -> Result<()> {
        if self.names.len() >= MAX_DEPTH {
            return Err(Error::refused(
                Code::PathTooLong,
                format!("{} leads too deep", shown(self.path)),
            ));
        }
        self.names.push(part);
        self.held.push_back(Rc::new(directory));
        if self.held.len() > HELD {
            self.held.pop_front();
        }
        Ok(())
    }

    fn make(&mut self, part: Vec<u8>, chown: bool) -> Result<()> {
        let here = self.here();
        match mkdirat(&*here, &part[..], Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(self.failed(error)),
        }
        let directory = openat(&*here, &part[..], DIRECTORY, Mode::empty())
            .map_err(|error| self.failed(error))?;
        if chown {
            // A set-gid parent would have handed down its group.
            std::os::unix::fs::fchown(directory.as_fd(), Some(0), Some(0))
                .map_err(|e| Error::io(shown(self.path), e))?;
        }
        fchmod(&directory, Mode::from_raw_mode(0o755)).map_err(|error| self.failed(error))?;
        self.enter(part, directory)
    }

    fn follow(&mut self, target: &[u8]) -> Result<()> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Error::refused(
                Code::SymlinkLoop,
                format!("{} leads through too many links", shown(self.path)),
            ));
        }
        if target.starts_with(b"/") {
            self.names.clear();
            self.held.clear();
        }
        self.push(target);
        Ok(())
    }

    fn up(&mut self) -> Result<()> {
        self.names.pop();
        self.held.pop_back();
        if !self.held.is_empty() {
            return Ok(());
        }
        // Above the window of held descriptors: walk down again by the real names.
        for name in std::mem::take(&mut self.names) {
            let directory = openat(&*self.here(), &name[..], STEP, Mode::empty())
                .map_err(|error| self.failed(error))?;
            self.enter(name, directory)?;
        }
        Ok(())
    }

    fn failed(&self, error: Errno) -> Error {
        Error::io(shown(self.path), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::{symlink, MetadataExt};

    fn inode(directory: &OwnedFd) -> u64 {
        rustix::fs::fstat(directory).unwrap().st_ino
    }

    #[test]
    fn resolves_as_under_chroot() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("../../../a/b", root.join("up")).unwrap();
        symlink("/a", root.join("absolute")).unwrap();
        let expected = std::fs::metadata(root.join("a/b")).unwrap().ino();
        let mut walk = Root::open(&root).unwrap();
        for path in [
            &b"a/b"[..],
            b"up",
            b"absolute/b",
            b"a/../up/../b",
            b"../../a/b",
        ] {
            let found = walk.find(path, Missing::Report).unwrap().unwrap();
            assert_eq!(inode(&found), expected, "{path:?}");
        }
        assert!(walk.find(b"a/none/x", Missing::Report).unwrap().is_none());
    }

    #[test]
    fn deep_paths_come_back_up() {
        let temp = tempfile::tempdir().unwrap();
        let mut root = Root::open(temp.path()).unwrap();
        let down = b"d/".repeat(300);
        root.find(&down, Missing::Make { chown: false })
            .unwrap()
            .unwrap();
        let path = [&down[..], &b"../".repeat(299), b"../x"].concat();
        root.find(&path, Missing::Make { chown: false })
            .unwrap()
            .unwrap();
        assert!(temp.path().join("x").is_dir());
    }

    #[test]
    fn files_open_inside_the_root_only() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path();
        std::fs::write(path.join("file"), "content").unwrap();
        symlink("/file", path.join("link")).unwrap();
        symlink("/etc/hostname", path.join("outside")).unwrap();
        symlink("self", path.join("self")).unwrap();
        std::fs::create_dir(path.join("dir")).unwrap();
        let root = Root::open(path).unwrap();
        let mut text = String::new();
        root.open_file(b"/dir/../link")
            .unwrap()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "content");
        assert!(root.open_file(b"outside").unwrap().is_none());
        assert_eq!(
            root.open_file(b"self").unwrap_err().code(),
            Some(Code::SymlinkLoop)
        );
        for name in [&b"dir"[..], b"", b"dir/.."] {
            assert_eq!(
                root.open_file(name).unwrap_err().code(),
                Some(Code::NotAFile),
                "{name:?}"
            );
        }
        assert_eq!(
            root.open_file(b"file/x").unwrap_err().code(),
            Some(Code::NotADirectory)
        );
    }
}
