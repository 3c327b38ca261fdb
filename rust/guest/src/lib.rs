//! Linux primitives that the app manager needs inside a realm and that Python's standard library lacks:
//! mounts, logon keys, power, interface addresses, and starting a contained process.
//!
//! The crate decides nothing. Each function is one kernel operation (or, for [`spawn`], one fixed
//! sequence of them) with an error that names the step and the kernel's reason.

pub mod interfaces;
pub mod keyring;
pub mod mounts;
pub mod power;
pub mod spawn;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What went wrong, and where.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A kernel operation failed.
    #[error("{step}: {source}")]
    Os {
        /// The operation, with its object where it has one.
        step: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// An argument cannot be handed to the kernel.
    #[error("{0}")]
    Argument(String),
    /// The contained process could not be set up; nothing of it is left.
    #[error("{step}: {source}")]
    Spawn {
        /// The step of the set-up that failed.
        step: spawn::Step,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl Error {
    /// The `errno` behind the error, if the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Os { source, .. } | Self::Spawn { source, .. } => source.raw_os_error(),
            Self::Argument(_) => None,
        }
    }
}

/// Turn the last `errno` into an [`Error::Os`].
pub(crate) fn last_error(step: impl Into<String>) -> Error {
    Error::Os {
        step: step.into(),
        source: io::Error::last_os_error(),
    }
}

/// A C string of `text`; a NUL inside is an error that names `what`.
pub(crate) fn c_string(what: &str, text: &[u8]) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::Argument(format!("{what} contains a NUL byte")))
}

/// A C string of a path.
pub(crate) fn c_path(what: &str, path: &Path) -> Result<CString, Error> {
    c_string(what, path.as_os_str().as_bytes())
}
