//! Removing what a layer hides or replaces, never through a link.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{openat, renameat, unlinkat, AtFlags, Dir, Mode};
use rustix::io::Errno;

use crate::walk::DIRECTORY;

type Outcome<T> = std::result::Result<T, Errno>;

/// Levels of a tree that are open at a time. What lies deeper is first moved to the top of the tree.
const LEVELS: usize = 32;

/// Remove the file, link or directory tree `name` in `parent`; one that is not there is no error.
pub fn remove(parent: impl AsFd, name: &[u8]) -> Outcome<()> {
    let parent = parent.as_fd();
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error),
    }
    let directory = openat(parent, name, DIRECTORY, Mode::empty())?;
    empty(&directory)?;
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Remove everything in `directory`, which may be a descriptor that only names it (`O_PATH`).
pub fn empty(directory: impl AsFd) -> Outcome<()> {
    let directory = openat(directory.as_fd(), c".", DIRECTORY, Mode::empty())?;
    empty_level(directory.as_fd(), directory.as_fd(), 1)
}

fn empty_level(top: BorrowedFd<'_>, directory: BorrowedFd<'_>, level: usize) -> Outcome<()> {
    // Again until a reading finds nothing: entries may move while they are listed.
    loop {
        let mut found = false;
        for item in Dir::read_from(directory)? {
            let item = item?;
            let name = item.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                found = true;
                remove_item(top, directory, name, level)?;
            }
        }
        if !found {
            return Ok(());
        }
    }
}

fn remove_item(
    top: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    name: &CStr,
    level: usize,
) -> Outcome<()> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error),
    }
    if level == LEVELS {
        return hoist(top, directory, name);
    }
    let inner = openat(directory, name, DIRECTORY, Mode::empty())?;
    empty_level(top, inner.as_fd(), level + 1)?;
    unlinkat(directory, name, AtFlags::REMOVEDIR)
}

/// Move a deep directory to the top of the tree, where a later reading finds it.
fn hoist(top: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &CStr) -> Outcome<()> {
    let mut number = 0_u64;
    loop {
        match renameat(directory, name, top, format!(".removing-{number}")) {
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => number += 1,
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn removes_deep_trees_and_follows_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let kept = temp.path().join("kept");
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "").unwrap();
        let mut path = temp.path().join("tree");
        for _ in 0..150 {
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("file"), "").unwrap();
            symlink(&kept, path.join("link")).unwrap();
            std::fs::create_dir(path.join("sibling")).unwrap();
            path.push("d");
        }
        let parent = std::fs::File::open(temp.path()).unwrap();
        remove(&parent, b"tree").unwrap();
        remove(&parent, b"tree").unwrap();
        assert!(!temp.path().join("tree").exists());
        assert!(kept.join("file").exists());
    }
}
