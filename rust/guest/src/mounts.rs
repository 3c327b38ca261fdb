//! Mounting and unmounting (mount(2), umount2(2)).

use std::ffi::CString;
use std::path::Path;
use std::ptr;

use crate::{c_path, c_string, last_error, Error};

fn optional(what: &str, text: Option<&str>) -> Result<Option<CString>, Error> {
    text.map(|text| c_string(what, text.as_bytes())).transpose()
}

/// Mount `source` on `target`.
///
/// `flags` are the `MS_*` bits; `data` is the file system's own option string.
pub fn mount(
    source: Option<&str>,
    target: &Path,
    kind: Option<&str>,
    flags: u64,
    data: Option<&str>,
) -> Result<(), Error> {
    let source = optional("mount source", source)?;
    let kind = optional("file system type", kind)?;
    let data = optional("mount options", data)?;
    let place = c_path("mount target", target)?;
    let pointer = |text: &Option<CString>| text.as_ref().map_or(ptr::null(), |text| text.as_ptr());
    // SAFETY: every pointer is null or a live NUL-terminated string of this frame.
    let result = unsafe {
        libc::mount(
            pointer(&source),
            place.as_ptr(),
            pointer(&kind),
            flags as libc::c_ulong,
            pointer(&data).cast(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(last_error(format!("mount {}", target.display())))
    }
}

/// Unmount `target`; with `detach` now from the tree and for good when its last user ends.
pub fn unmount(target: &Path, detach: bool) -> Result<(), Error> {
    let place = c_path("mount target", target)?;
    let flags = libc::UMOUNT_NOFOLLOW | if detach { libc::MNT_DETACH } else { 0 };
    // SAFETY: `place` is a live NUL-terminated string.
    if unsafe { libc::umount2(place.as_ptr(), flags) } == 0 {
        Ok(())
    } else {
        Err(last_error(format!("unmount {}", target.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nul_in_a_path_is_refused_before_the_kernel_sees_it() {
        let error = mount(Some("a\0b"), Path::new("/"), None, 0, None).unwrap_err();
        assert_eq!(error.to_string(), "mount source contains a NUL byte");
    }

    #[test]
    fn the_error_names_the_place_and_the_reason() {
        let error = unmount(Path::new("/nonexistent/place"), false).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT));
        assert!(error
            .to_string()
            .starts_with("unmount /nonexistent/place: "));
    }
}
