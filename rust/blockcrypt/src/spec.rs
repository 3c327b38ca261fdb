//! The cipher field of a dm-crypt table line.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// A 128-bit block cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CipherName {
    /// AES (FIPS 197), with the processor's instructions where it has them.
    Aes,
    /// Twofish.
    Twofish,
    /// Serpent, in the byte order of the AES submission, which the kernel uses.
    Serpent,
}

/// A mode of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Cipher block chaining over one crypto sector, without padding.
    Cbc,
    /// XTS (IEEE 1619): the volume key is the data key, then the tweak key.
    Xts,
}

/// How a crypto sector's number becomes its 16-byte IV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IvMode {
    /// The number modulo 2^32, little-endian; repeats every 2 TiB.
    Plain,
    /// The number as 64 bits, little-endian.
    Plain64,
    /// The 64-bit number encrypted by the same cipher under SHA-256 of the volume key.
    EssivSha256,
}

/// Cipher, mode and IV generator, written `aes-xts-plain64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The block cipher.
    pub cipher: CipherName,
    /// The mode of operation.
    pub mode: Mode,
    /// The IV generator.
    pub iv: IvMode,
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = || Error::Spec(text.to_owned());
        let mut fields = text.splitn(3, '-');
        let mut field = || fields.next().ok_or_else(refused);
        let cipher = match field()? {
            "aes" => CipherName::Aes,
            "twofish" => CipherName::Twofish,
            "serpent" => CipherName::Serpent,
            _ => return Err(refused()),
        };
        let mode = match field()? {
            "cbc" => Mode::Cbc,
            "xts" => Mode::Xts,
            _ => return Err(refused()),
        };
        let iv = match field()? {
            "plain" => IvMode::Plain,
            "plain64" => IvMode::Plain64,
            "essiv:sha256" => IvMode::EssivSha256,
            _ => return Err(refused()),
        };
        Ok(Self { cipher, mode, iv })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cipher = match self.cipher {
            CipherName::Aes => "aes",
            CipherName::Twofish => "twofish",
            CipherName::Serpent => "serpent",
        };
        let mode = match self.mode {
            Mode::Cbc => "cbc",
            Mode::Xts => "xts",
        };
        let iv = match self.iv {
            IvMode::Plain => "plain",
            IvMode::Plain64 => "plain64",
            IvMode::EssivSha256 => "essiv:sha256",
        };
        write!(formatter, "{cipher}-{mode}-{iv}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_is_read_as_it_is_written() {
        for cipher in ["aes", "twofish", "serpent"] {
            for mode in ["cbc", "xts"] {
                for iv in ["plain", "plain64", "essiv:sha256"] {
                    let text = format!("{cipher}-{mode}-{iv}");
                    assert_eq!(text.parse::<Spec>().unwrap().to_string(), text);
                }
            }
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "aes",
            "aes-cbc",
            "aes-ctr-plain",
            "AES-cbc-plain",
            "aes-cbc-essiv:md5",
            "aes-cbc-plain-",
        ] {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
    }
}
