//! One `crypt` target: IV numbers, keys, and runs of crypto sectors.

use std::fmt;

use cipher::KeyInit;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::engine::{Block, Cbc, Cipher, Engine, Xts};
use crate::spec::{CipherName, IvMode, Mode, Spec};
use crate::Error;

/// The unit in which dm-crypt counts positions, in bytes, whatever the crypto sector.
const UNIT: u64 = 512;

/// The options of a table line that change ciphertext.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes per crypto sector: 512, or 4096 (`sector_size:4096`).
    pub sector_size: u32,
    /// Added to every sector number, in 512-byte units.
    pub iv_offset: u64,
    /// Count IV numbers in crypto sectors instead of 512-byte units (`iv_large_sectors`).
    pub iv_large_sectors: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sector_size: 512,
            iv_offset: 0,
            iv_large_sectors: false,
        }
    }
}

/// A keyed dm-crypt mapping. Key schedules are wiped when it is dropped.
pub struct Mapping {
    spec: Spec,
    options: Options,
    engine: Box<dyn Engine>,
    essiv: Option<Box<dyn Essiv>>,
}

impl fmt::Debug for Mapping {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Mapping")
            .field("spec", &self.spec)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Mapping {
    /// Key a mapping.
    ///
    /// # Errors
    /// The key's size does not fit, the sector size is unknown, or the IV offset is not a multiple of
    /// the crypto sector (the kernel refuses the same tables).
    pub fn new(spec: Spec, key: &[u8], options: Options) -> Result<Self, Error> {
        if !matches!(options.sector_size, 512 | 4096) {
            return Err(Error::SectorSize(options.sector_size));
        }
        let unit = u64::from(options.sector_size) / UNIT;
        if !options.iv_offset.is_multiple_of(unit) {
            return Err(Error::Alignment {
                what: "an IV offset",
                value: options.iv_offset,
                unit,
            });
        }
        let (expected, cipher_key) = match spec.mode {
            Mode::Cbc => ("16, 24 or 32", key.len()),
            Mode::Xts => (
                "32, 48 or 64",
                if key.len().is_multiple_of(2) {
                    key.len() / 2
                } else {
                    0
                },
            ),
        };
        let wrong = || Error::KeySize {
            spec: spec.to_string(),
            got: key.len(),
            expected,
        };
        let engine = match (spec.cipher, cipher_key) {
            (CipherName::Aes, 16) => engine::<aes::Aes128>(spec.mode, key),
            (CipherName::Aes, 24) => engine::<aes::Aes192>(spec.mode, key),
            (CipherName::Aes, 32) => engine::<aes::Aes256>(spec.mode, key),
            (CipherName::Twofish, 16 | 24 | 32) => engine::<twofish::Twofish>(spec.mode, key),
            (CipherName::Serpent, 16 | 24 | 32) => engine::<serpent::Serpent>(spec.mode, key),
            _ => None,
        };
        let essiv = match spec.iv {
            IvMode::EssivSha256 => Some(essiv(spec.cipher, key).ok_or_else(wrong)?),
            IvMode::Plain | IvMode::Plain64 => None,
        };
        Ok(Self {
            spec,
            options,
            engine: engine.ok_or_else(wrong)?,
            essiv,
        })
    }

    /// Bytes per crypto sector.
    #[must_use]
    pub fn sector_size(&self) -> u64 {
        u64::from(self.options.sector_size)
    }

    /// The 16-byte IV (CBC) or unencrypted tweak (XTS) of the crypto sector at `sector`, in 512-byte units.
    #[must_use]
    pub fn iv(&self, sector: u64) -> [u8; 16] {
        let mut number = sector.wrapping_add(self.options.iv_offset);
        if self.options.iv_large_sectors {
            number >>= (self.sector_size() / UNIT).trailing_zeros();
        }
        let mut iv = [0; 16];
        match self.spec.iv {
            // The truncation is the definition of `plain`.
            #[allow(clippy::cast_possible_truncation)]
            IvMode::Plain => iv[..4].copy_from_slice(&(number as u32).to_le_bytes()),
            IvMode::Plain64 | IvMode::EssivSha256 => iv[..8].copy_from_slice(&number.to_le_bytes()),
        }
        if let Some(essiv) = &self.essiv {
            essiv.encrypt(&mut iv);
        }
        iv
    }

    /// Encrypt whole crypto sectors in place; the first lies at `sector`, in 512-byte units.
    ///
    /// # Errors
    /// `sector` or the length of `data` is not a multiple of the crypto sector.
    pub fn encrypt(&self, sector: u64, data: &mut [u8]) -> Result<(), Error> {
        self.each(sector, data, |iv, bytes| self.engine.encrypt(iv, bytes))
    }

    /// Decrypt whole crypto sectors in place. See [`Mapping::encrypt`].
    ///
    /// # Errors
    /// `sector` or the length of `data` is not a multiple of the crypto sector.
    pub fn decrypt(&self, sector: u64, data: &mut [u8]) -> Result<(), Error> {
        self.each(sector, data, |iv, bytes| self.engine.decrypt(iv, bytes))
    }

    fn each(
        &self,
        first: u64,
        data: &mut [u8],
        crypt: impl Fn([u8; 16], &mut [u8]),
    ) -> Result<(), Error> {
        let size = self.sector_size();
        let step = size / UNIT;
        if !first.is_multiple_of(step) {
            return Err(Error::Alignment {
                what: "a sector number",
                value: first,
                unit: step,
            });
        }
        if !(data.len() as u64).is_multiple_of(size) {
            return Err(Error::Alignment {
                what: "a length",
                value: data.len() as u64,
                unit: size,
            });
        }
        let mut sector = first;
        for bytes in data.chunks_exact_mut(self.options.sector_size as usize) {
            crypt(self.iv(sector), bytes);
            sector = sector.wrapping_add(step);
        }
        Ok(())
    }
}

fn engine<C: Cipher + KeyInit + Send + Sync + 'static>(
    mode: Mode,
    key: &[u8],
) -> Option<Box<dyn Engine>> {
    Some(match mode {
        Mode::Cbc => Box::new(Cbc(C::new_from_slice(key).ok()?)),
        Mode::Xts => Box::new(Xts::<C>::new(key)?),
    })
}

/// The cipher that turns a sector number into an unpredictable IV.
trait Essiv: Send + Sync {
    fn encrypt(&self, iv: &mut [u8; 16]);
}

struct Keyed<C>(C);

impl<C: Cipher + Send + Sync> Essiv for Keyed<C> {
    fn encrypt(&self, iv: &mut [u8; 16]) {
        self.0.encrypt_block(Block::from_mut_slice(iv));
    }
}

fn essiv(cipher: CipherName, key: &[u8]) -> Option<Box<dyn Essiv>> {
    let mut digest = Sha256::digest(key);
    let salt = Zeroizing::new(<[u8; 32]>::from(digest));
    digest.as_mut_slice().zeroize();
    Some(match cipher {
        CipherName::Aes => Box::new(Keyed(aes::Aes256::new_from_slice(&*salt).ok()?)),
        CipherName::Twofish => Box::new(Keyed(twofish::Twofish::new_from_slice(&*salt).ok()?)),
        CipherName::Serpent => Box::new(Keyed(serpent::Serpent::new_from_slice(&*salt).ok()?)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mapping(spec: &str, key: &[u8], options: Options) -> Result<Mapping, Error> {
        Mapping::new(spec.parse().unwrap(), key, options)
    }

    #[test]
    fn tables_that_the_kernel_refuses_are_refused() {
        let plain = Options::default();
        assert!(mapping("aes-cbc-plain", &[0; 64], plain).is_err());
        assert!(mapping("aes-xts-plain", &[0; 16], plain).is_err());
        assert!(mapping("serpent-xts-plain64", &[0; 33], plain).is_err());
        let large = Options {
            sector_size: 4096,
            iv_offset: 4,
            ..plain
        };
        assert!(mapping("aes-xts-plain64", &[0; 64], large).is_err());
        assert!(mapping(
            "aes-xts-plain64",
            &[0; 64],
            Options {
                sector_size: 1024,
                ..plain
            }
        )
        .is_err());
    }

    #[test]
    fn iv_numbers() {
        let options = Options {
            iv_offset: u64::from(u32::MAX),
            ..Options::default()
        };
        assert_eq!(
            mapping("aes-cbc-plain", &[0; 16], options).unwrap().iv(1),
            [0; 16]
        );
        assert_eq!(
            mapping("aes-cbc-plain64", &[0; 16], options).unwrap().iv(1)[4],
            1
        );
        let large = Options {
            sector_size: 4096,
            iv_large_sectors: true,
            iv_offset: 8,
        };
        assert_eq!(
            mapping("aes-cbc-plain64", &[0; 16], large).unwrap().iv(16)[0],
            3
        );
    }

    #[test]
    fn partial_sectors_are_refused() {
        let large = mapping(
            "aes-xts-plain64",
            &[1; 64],
            Options {
                sector_size: 4096,
                ..Options::default()
            },
        )
        .unwrap();
        assert!(large.encrypt(4, &mut [0; 4096]).is_err());
        assert!(large.encrypt(8, &mut [0; 512]).is_err());
    }

    proptest! {
        #[test]
        fn decryption_inverts_encryption(
            cipher in 0..3usize, mode in 0..2usize, iv in 0..3usize, size in 0..3usize, large in any::<bool>(),
            key in prop::collection::vec(any::<u8>(), 64), sector in 0..u64::MAX / 16, seed in any::<u8>(),
        ) {
            let spec = format!("{}-{}-{}", ["aes", "twofish", "serpent"][cipher], ["cbc", "xts"][mode],
                               ["plain", "plain64", "essiv:sha256"][iv]);
            let key = &key[..[16, 24, 32][size] << mode];
            let options = Options { sector_size: if large { 4096 } else { 512 }, ..Options::default() };
            let mapping = mapping(&spec, key, options).unwrap();
            let clear: Vec<u8> = (0..8192u32).map(|index| seed.wrapping_add((index % 251) as u8)).collect();
            let mut data = clear.clone();
            mapping.encrypt(sector * 8, &mut data).unwrap();
            prop_assert_ne!(&data, &clear);
            mapping.decrypt(sector * 8, &mut data).unwrap();
            prop_assert_eq!(data, clear);
        }
    }
}
