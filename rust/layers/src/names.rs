//! Names in archives: bytes, kept exactly, never outside the destination.

use crate::error::{shown, Code, Error, Result};

/// Largest normalised path, bytes.
const MAX_PATH: usize = 4096;
/// Largest component, bytes.
const MAX_COMPONENT: usize = 255;

/// Bring a name to components joined by single slashes, without leading slash.
///
/// Empty and `.` components are dropped, so that the result is empty when the destination itself is named.
///
/// # Errors
/// `name_invalid` (nothing, or a NUL), `path_escape` (any `..`), `path_too_long`.
pub fn normalise(name: &[u8]) -> Result<Vec<u8>> {
    if name.is_empty() {
        return Err(Error::refused(
            Code::NameInvalid,
            "a name in the layer is empty",
        ));
    }
    if name.contains(&0) {
        return Err(Error::refused(
            Code::NameInvalid,
            format!("{} has a NUL in it", shown(name)),
        ));
    }
    let mut path = Vec::with_capacity(name.len());
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => {
                return Err(Error::refused(
                    Code::PathEscape,
                    format!("{} has a '..' in it", shown(name)),
                ))
            }
            _ if part.len() > MAX_COMPONENT => return Err(too_long(name)),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    if path.len() > MAX_PATH {
        return Err(too_long(name));
    }
    Ok(path)
}

/// Check what a symlink points to; it is data and is kept as it is.
///
/// # Errors
/// `name_invalid` (nothing, or a NUL), `path_too_long` (more than the system can store).
pub fn check_symlink_target(name: &[u8], target: &[u8]) -> Result<()> {
    if target.is_empty() || target.contains(&0) {
        return Err(Error::refused(
            Code::NameInvalid,
            format!("the target of {} is empty or has a NUL", shown(name)),
        ));
    }
    if target.len() >= MAX_PATH {
        return Err(too_long(target));
    }
    Ok(())
}

fn too_long(name: &[u8]) -> Error {
    Error::refused(Code::PathTooLong, format!("{} is too long", shown(name)))
}

/// Split a normalised path into the directory part and the last component.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// What a name means beyond itself.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// A name like any other.
    Plain,
    /// Hides this name beside it in lower layers.
    Whiteout(&'a [u8]),
    /// Hides everything that lower layers have in its directory.
    Opaque,
    /// AUFS bookkeeping, without meaning here.
    Aufs,
}

/// Tell whiteouts from other names. Source: OCI image-spec 1.1, layer.md, "Whiteouts".
///
/// # Errors
/// `whiteout_invalid`: it would hide its own directory or the parent, or is used as a directory.
pub fn meaning(path: &[u8]) -> Result<Meaning<'_>> {
    let invalid = || {
        Err(Error::refused(
            Code::WhiteoutInvalid,
            format!("{} is no valid whiteout", shown(path)),
        ))
    };
    let mut parts = path.split(|&byte| byte == b'/').peekable();
    while let Some(part) = parts.next() {
        let Some(hidden) = part.strip_prefix(b".wh.") else {
            continue;
        };
        let last = parts.peek().is_none();
        return match hidden {
            b".wh..opq" if last => Ok(Meaning::Opaque),
            b".wh..opq" => invalid(),
            _ if hidden.starts_with(b".wh.") => Ok(Meaning::Aufs),
            b"" | b"." | b".." => invalid(),
            _ if !last => invalid(),
            _ => Ok(Meaning::Whiteout(hidden)),
        };
    }
    Ok(Meaning::Plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code<T>(result: Result<T>) -> Option<Code> {
        result.err().and_then(|error| error.code())
    }

    #[test]
    fn names_are_normalised() {
        for (name, path) in [
            (&b"/a//./b/"[..], &b"a/b"[..]),
            (b"./", b""),
            (b"///", b""),
            (b"..a/b..", b"..a/b.."),
            (b"\xff\n", b"\xff\n"),
        ] {
            assert_eq!(normalise(name).unwrap(), path);
        }
        assert_eq!(code(normalise(b"")), Some(Code::NameInvalid));
        assert_eq!(code(normalise(b"a\0b")), Some(Code::NameInvalid));
        assert_eq!(code(normalise(b"a/..")), Some(Code::PathEscape));
        assert_eq!(code(normalise(&[b'x'; 256])), Some(Code::PathTooLong));
    }

    #[test]
    fn the_path_limit_is_that_of_the_normalised_path() {
        let exact = b"d/".repeat(2048);
        assert_eq!(normalise(&exact).unwrap().len(), 4095);
        assert_eq!(
            code(normalise(&b"d/".repeat(2049))),
            Some(Code::PathTooLong)
        );
        assert_eq!(normalise(&b"./".repeat(5000)).unwrap(), b"");
    }

    #[test]
    fn whiteouts() {
        assert_eq!(meaning(b"a/.wh.b").unwrap(), Meaning::Whiteout(b"b"));
        assert_eq!(meaning(b"a/.wh..b").unwrap(), Meaning::Whiteout(b".b"));
        assert_eq!(meaning(b".wh..wh..opq").unwrap(), Meaning::Opaque);
        assert_eq!(meaning(b".wh..wh.plnk/1").unwrap(), Meaning::Aufs);
        assert_eq!(meaning(b"a.wh.b/.wh").unwrap(), Meaning::Plain);
        for name in [
            &b".wh."[..],
            b".wh..",
            b".wh...",
            b".wh.a/b",
            b".wh..wh..opq/x",
        ] {
            assert_eq!(code(meaning(name)), Some(Code::WhiteoutInvalid), "{name:?}");
        }
    }
}
