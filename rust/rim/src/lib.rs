//! The Realm Initial Measurement (RIM) of a realm, predicted from what it is launched with.
//!
//! * [`rmm`]: the monitor's side: realm parameters, descriptors, the running measurement.
//! * [`layout`]: the VMM's side: where kernel, initrd and device tree stand in RAM.
//! * [`payload`]: bounded reads of the measured files; no file is ever held in memory.
//! * [`digest`]: content digests on all processors, in order.
//! * [`recorder`]: extends the RIM region by region, and tells an [`observer`] of every step.
//! * [`launch`]: the two together, step by step in the order in which kvmtool launches a realm.
//! * [`dialect`]: the other order of steps, that of the Realm Virtual Machine specification.
//! * [`trace`]: observers that report; [`probe`]: variants of one launch, quickly.
//!
//! | threat | answer | test |
//! | --- | --- | --- |
//! | a kernel header with absurd sizes wraps an address | checked arithmetic, [`layout::MAX_HEADER_VALUE`] | `layout::tests::never_panics` |
//! | a file changes while it is measured | a short read is [`Error::Changed`] | `payload::tests::a_shrinking_file_is_noticed` |
//! | a huge image fills the memory | a few batches of 48 granules per thread | `digest::tests::more_batches_than_may_wait` |
//! | a thread that fails leaves the others waiting | failures and panics close the queue | `digest::tests::a_file_that_shrinks_ends_all_threads` |
//! | a pipe or device as kernel hangs the measurement | only regular files, [`Error::NotAFile`] | `payload::tests::only_regular_files` |

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

pub mod dialect;
pub mod digest;
pub mod launch;
pub mod layout;
pub mod observer;
pub mod payload;
pub mod probe;
pub mod recorder;
pub mod rmm;
pub mod trace;

/// Size of a granule, and of a page.
pub const GRANULE_SIZE: u64 = 4096;

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be opened or read.
    #[error("{what} {}: {}", show(path), describe(source))]
    Io {
        /// What the file is to the launch.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Only regular files can be measured.
    #[error("{what} {}: not a regular file", show(path))]
    NotAFile {
        /// What the file is to the launch.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The file ended before the size that it had when it was opened.
    #[error("{what} {}: changed while it was measured", show(path))]
    Changed {
        /// What the file is to the launch.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The file is too short to be what it should be.
    #[error("{what} {}: {size} bytes; at least {least} are needed", show(path))]
    TooShort {
        /// What the file is to the launch.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The smallest acceptable size in bytes.
        least: u64,
    },
    /// Something does not fit into the realm's memory.
    #[error("{0}")]
    Layout(#[from] layout::LayoutError),
    /// Two blobs share a granule.
    #[error("the {0} lies where another file already is, or beyond the address space")]
    Overlap(&'static str),
    /// The SVE vector length is not a multiple of 128 bits.
    #[error("SVE vector length {0} is not a multiple of 128 bits")]
    SveVectorLength(u32),
    /// The machine cannot be described by a device tree.
    #[error(transparent)]
    DeviceTree(#[from] islet_dtb::Error),
}

impl Error {
    /// A stable identifier of the kind of failure.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => "no-such-file",
                std::io::ErrorKind::PermissionDenied => "permission",
                _ => "io",
            },
            Self::NotAFile { .. } => "not-a-file",
            Self::Changed { .. } => "file-changed",
            Self::TooShort { .. } => "file-too-short",
            Self::Layout(_) | Self::Overlap(_) => "layout",
            Self::SveVectorLength(_) => "sve-vl",
            Self::DeviceTree(_) => "device-tree",
        }
    }
}

/// The path on one line, whatever is in its name.
fn show(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// The system's words without the error number that `io::Error` appends.
fn describe(source: &std::io::Error) -> String {
    let text = source.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or_default()
        .to_owned()
}
