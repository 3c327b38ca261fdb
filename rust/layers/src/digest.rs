//! Content digests. Source: OCI image-spec 1.1, descriptor.md, "Digests".

use std::fmt;

use sha2::{Digest as _, Sha256, Sha512};

use crate::error::{shown, Code, Error, Result};

/// A registered digest: algorithm and value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Digest {
    /// `sha256:` and 64 hex digits.
    Sha256([u8; 32]),
    /// `sha512:` and 128 hex digits.
    Sha512([u8; 64]),
}

impl Digest {
    /// Parse `ALGORITHM:HEX`; hex digits are lower case.
    ///
    /// # Errors
    /// `digest_invalid` for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = || {
            Error::refused(
                Code::DigestInvalid,
                format!("{} is not a digest", shown(text.as_bytes())),
            )
        };
        let (algorithm, hex) = text.split_once(':').ok_or_else(invalid)?;
        match algorithm {
            "sha256" => decode(hex).map(Self::Sha256).ok_or_else(invalid),
            "sha512" => decode(hex).map(Self::Sha512).ok_or_else(invalid),
            _ => Err(invalid()),
        }
    }

    /// A running hash of this digest's algorithm.
    pub fn hasher(&self) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::Sha512(_) => Hasher::Sha512(Box::new(Sha512::new())),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, value): (_, &[u8]) = match self {
            Self::Sha256(value) => ("sha256", value),
            Self::Sha512(value) => ("sha512", value),
        };
        write!(f, "{name}:")?;
        value.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn decode<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if hex.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (value, pair) in out.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *value = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

/// A running hash.
pub enum Hasher {
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-512.
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// Add bytes.
    pub fn update(&mut self, data: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(data),
            Self::Sha512(hash) => hash.update(data),
        }
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hash) => Digest::Sha256(hash.finalize().into()),
            Self::Sha512(hash) => Digest::Sha512(hash.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let text = format!("sha256:{}", "0123456789abcdef".repeat(4));
        assert_eq!(Digest::parse(&text).unwrap().to_string(), text);
        let text = format!("sha512:{}", "0123456789abcdef".repeat(8));
        assert_eq!(Digest::parse(&text).unwrap().to_string(), text);
    }

    #[test]
    fn refuses_other_forms() {
        for text in [
            "",
            "sha256",
            "sha256:00",
            "md5:00",
            &format!("sha256:{}", "A".repeat(64)),
            &"0".repeat(64),
        ] {
            assert_eq!(
                Digest::parse(text).unwrap_err().code(),
                Some(Code::DigestInvalid),
                "{text}"
            );
        }
    }
}
