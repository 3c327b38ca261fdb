//! What can go wrong, under names that programs may rely on.

use std::io;

/// Stable names of refusals, as they appear in `--json` output and in the vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // Each name says what it stands for.
pub enum Code {
    BlobMissing,
    SizeMismatch,
    DigestMismatch,
    DigestInvalid,
    MediaTypeUnsupported,
    DecompressError,
    DiffIdMismatch,
    TarMalformed,
    TarTruncated,
    TarTrailingData,
    SparseUnsupported,
    UnsupportedEntry,
    DeviceNode,
    ForbiddenXattr,
    PathEscape,
    RootReplacement,
    PathTooLong,
    NameInvalid,
    NotADirectory,
    SymlinkLoop,
    HardlinkInvalid,
    WhiteoutInvalid,
    LimitExceeded,
    NotAFile,
}

impl Code {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BlobMissing => "blob_missing",
            Self::SizeMismatch => "size_mismatch",
            Self::DigestMismatch => "digest_mismatch",
            Self::DigestInvalid => "digest_invalid",
            Self::MediaTypeUnsupported => "media_type_unsupported",
            Self::DecompressError => "decompress_error",
            Self::DiffIdMismatch => "diff_id_mismatch",
            Self::TarMalformed => "tar_malformed",
            Self::TarTruncated => "tar_truncated",
            Self::TarTrailingData => "tar_trailing_data",
            Self::SparseUnsupported => "sparse_unsupported",
            Self::UnsupportedEntry => "unsupported_entry",
            Self::DeviceNode => "device_node",
            Self::ForbiddenXattr => "forbidden_xattr",
            Self::PathEscape => "path_escape",
            Self::RootReplacement => "root_replacement",
            Self::PathTooLong => "path_too_long",
            Self::NameInvalid => "name_invalid",
            Self::NotADirectory => "not_a_directory",
            Self::SymlinkLoop => "symlink_loop",
            Self::HardlinkInvalid => "hardlink_invalid",
            Self::WhiteoutInvalid => "whiteout_invalid",
            Self::LimitExceeded => "limit_exceeded",
            Self::NotAFile => "not_a_file",
        }
    }
}

/// Why a layer was not applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rule refused the layer. `detail` names the input, with names from the archive escaped.
    #[error("{detail}")]
    Refused {
        /// Which rule.
        code: Code,
        /// One line.
        detail: String,
    },
    /// The system refused an operation.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, with names from the archive escaped.
        context: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A refusal under `code`.
    pub fn refused(code: Code, detail: impl Into<String>) -> Self {
        Self::Refused {
            code,
            detail: detail.into(),
        }
    }

    /// A failed system call.
    pub fn io(context: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            context: context.into(),
            source: source.into(),
        }
    }

    /// The code of a refusal; none for failures of the system.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Carry this error through an interface that knows `io::Error` only.
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    /// The error that `into_io` wrapped, or what `otherwise` makes of a foreign one.
    pub(crate) fn from_io(error: io::Error, otherwise: impl FnOnce(io::Error) -> Self) -> Self {
        match error.downcast::<Self>() {
            Ok(own) => own,
            Err(foreign) => otherwise(foreign),
        }
    }
}

/// Show bytes of an archive on one line of printable ASCII.
pub fn shown(bytes: &[u8]) -> String {
    const LONGEST: usize = 300;
    let cut = &bytes[..bytes.len().min(LONGEST)];
    let dots = if cut.len() < bytes.len() { "…" } else { "" };
    format!("'{}{dots}'", cut.escape_ascii())
}
