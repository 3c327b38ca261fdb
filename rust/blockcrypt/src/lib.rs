//! The sector encryption of Linux dm-crypt, in user space.
//!
//! A [`Mapping`] is what one `crypt` target of the device mapper does: a cipher, a mode, an IV
//! generator and a volume key over crypto sectors of 512 or 4096 bytes. A [`Volume`] is such a mapping
//! over a range of a file, readable and writable at any byte offset.
//!
//! Source: Linux `Documentation/admin-guide/device-mapper/dm-crypt.rst`; the formats were confirmed
//! against a Linux 6.1 kernel (see the golden vectors under `fixtures/vectors/crypt`).
//!
//! Nothing here authenticates: an attacker who can write the disk changes plaintext unnoticed.
#![forbid(unsafe_code)]

mod engine;
mod mapping;
mod spec;
mod volume;

pub use mapping::{Mapping, Options};
pub use spec::{CipherName, IvMode, Mode, Spec};
pub use volume::Volume;

/// Why a mapping could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cipher specification is not one of the supported combinations.
    #[error("cipher `{0}` is not supported: expected aes|twofish|serpent - cbc|xts - plain|plain64|essiv:sha256")]
    Spec(String),
    /// The key does not have a size that the cipher and mode accept.
    #[error("a key of {got} bytes does not fit {spec}: expected {expected}")]
    KeySize {
        /// The cipher specification.
        spec: String,
        /// Bytes given.
        got: usize,
        /// The accepted sizes, as text.
        expected: &'static str,
    },
    /// The crypto sector size is neither 512 nor 4096 bytes.
    #[error("a crypto sector has 512 or 4096 bytes, not {0}")]
    SectorSize(u32),
    /// A position, length or IV offset is not a multiple of the crypto sector.
    #[error("{what} of {value} is not a multiple of the crypto sector ({unit})")]
    Alignment {
        /// What is misaligned.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What it must be a multiple of, in the same unit.
        unit: u64,
    },
    /// A read or write goes beyond the mapping.
    #[error("bytes {offset}..{end} lie outside the mapping of {size} bytes")]
    Range {
        /// First byte.
        offset: u64,
        /// One past the last byte, saturated.
        end: u64,
        /// Size of the mapping in bytes.
        size: u64,
    },
    /// The file refused.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}
