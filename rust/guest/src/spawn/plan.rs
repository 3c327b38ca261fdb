//! Everything that the child needs, as C strings and pointer arrays, made before clone.

use std::ffi::CString;
use std::os::fd::RawFd;
use std::ptr;

use super::Spec;
use crate::{c_path, c_string, Error};

const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A path inside the root: the directories above it, outermost first, and itself.
pub(super) struct Place {
    pub parents: Vec<CString>,
    pub path: CString,
}

impl Place {
    fn new(what: &str, path: &[u8]) -> Result<Self, Error> {
        if !path.starts_with(b"/") {
            return Err(Error::Argument(format!("{what} is not an absolute path")));
        }
        let mut parents = Vec::new();
        for (index, byte) in path.iter().enumerate().skip(1) {
            if *byte == b'/' && path[index - 1] != b'/' {
                parents.push(c_string(what, &path[..index])?);
            }
        }
        Ok(Self {
            parents,
            path: c_string(what, path)?,
        })
    }
}

/// One file bound into the root. `tree` is the detached mount that the child makes of it.
pub(super) struct Bind {
    pub source: CString,
    pub target: Place,
    pub tree: RawFd,
}

/// See [`Spec`]; the descriptors are filled in by the caller.
pub(super) struct Plan {
    pub root: CString,
    pub programs: Vec<CString>,
    pub argv: PointerArray,
    pub env: PointerArray,
    pub cwd: Place,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub hostname: Vec<u8>,
    pub binds: Vec<Bind>,
    pub stdout: RawFd,
    pub stderr: RawFd,
    pub status: RawFd,
    pub lifeline: RawFd,
    pub error: RawFd,
}

/// Strings and the NULL-terminated array of pointers to them that execve takes.
pub(super) struct PointerArray {
    _strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl PointerArray {
    fn new(what: &str, items: &[Vec<u8>]) -> Result<Self, Error> {
        let strings = items
            .iter()
            .map(|item| c_string(what, item))
            .collect::<Result<Vec<_>, _>>()?;
        // A CString's bytes are on the heap: moving the vector does not move them.
        let pointers = strings
            .iter()
            .map(|text| text.as_ptr())
            .chain([ptr::null()])
            .collect();
        Ok(Self {
            _strings: strings,
            pointers,
        })
    }

    pub fn as_ptr(&self) -> *const *const libc::c_char {
        self.pointers.as_ptr()
    }
}

impl Plan {
    pub fn prepare(spec: &Spec) -> Result<Self, Error> {
        let program = spec
            .argv
            .first()
            .ok_or_else(|| Error::Argument("no program to run".into()))?;
        let binds = spec
            .binds
            .iter()
            .map(|(source, target)| {
                Ok(Bind {
                    source: c_path("bind source", source)?,
                    target: Place::new("bind target", target)?,
                    tree: -1,
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        Ok(Self {
            root: c_path("root", &spec.root)?,
            programs: candidates(program, &spec.env)?,
            argv: PointerArray::new("argument", &spec.argv)?,
            env: PointerArray::new("environment", &spec.env)?,
            cwd: Place::new("working directory", &spec.cwd)?,
            uid: spec.uid,
            gid: spec.gid,
            groups: spec.groups.clone(),
            hostname: spec.hostname.clone(),
            binds,
            stdout: -1,
            stderr: -1,
            status: -1,
            lifeline: -1,
            error: -1,
        })
    }
}

/// The paths under which the program is tried, in order (execvp(3)).
fn candidates(program: &[u8], env: &[Vec<u8>]) -> Result<Vec<CString>, Error> {
    if program.is_empty() {
        return Err(Error::Argument("the program's name is empty".into()));
    }
    if program.contains(&b'/') {
        return Ok(vec![c_string("program", program)?]);
    }
    let search = env
        .iter()
        .find_map(|item| item.strip_prefix(b"PATH=".as_slice()))
        .unwrap_or(DEFAULT_PATH);
    search
        .split(|byte| *byte == b':')
        .map(|directory| {
            let mut path = if directory.is_empty() {
                b".".to_vec()
            } else {
                directory.to_vec()
            };
            path.push(b'/');
            path.extend_from_slice(program);
            c_string("program", &path)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(strings: &[CString]) -> Vec<&str> {
        strings.iter().map(|text| text.to_str().unwrap()).collect()
    }

    #[test]
    fn a_program_with_a_slash_is_not_searched() {
        assert_eq!(texts(&candidates(b"./x", &[]).unwrap()), ["./x"]);
    }

    #[test]
    fn the_search_path_is_the_childs() {
        let env = [b"A=1".to_vec(), b"PATH=/a::/b".to_vec()];
        assert_eq!(
            texts(&candidates(b"x", &env).unwrap()),
            ["/a/x", "./x", "/b/x"]
        );
    }

    #[test]
    fn parents_are_listed_outermost_first() {
        let place = Place::new("p", b"/a//b/c").unwrap();
        assert_eq!(texts(&place.parents), ["/a", "/a//b"]);
        assert!(Place::new("p", b"/").unwrap().parents.is_empty());
    }
}
