//! One 512-byte header block.

use super::{malformed, Kind};
use crate::error::{shown, Code, Error, Result};

/// Size of every header and unit of padding, bytes.
pub const BLOCK: usize = 512;

/// Largest owner or group: 2^32-1 means "leave as it is" to the kernel.
pub const MAX_ID: u32 = u32::MAX - 1;

/// A header block whose checksum is right.
pub struct Block([u8; BLOCK]);

impl Block {
    /// Accept `bytes` if their checksum is right, whether its sum was made of signed or unsigned bytes.
    pub fn checked(bytes: [u8; BLOCK]) -> Result<Self> {
        let block = Self(bytes);
        let counted = |(index, &byte): (usize, &u8)| {
            if (148..156).contains(&index) {
                b' '
            } else {
                byte
            }
        };
        let unsigned: i128 = bytes
            .iter()
            .enumerate()
            .map(|pair| i128::from(counted(pair)))
            .sum();
        let signed: i128 = bytes
            .iter()
            .enumerate()
            .map(|pair| i128::from(counted(pair) as i8))
            .sum();
        let stated = block.number(148..156, "checksum")?;
        if stated == unsigned || stated == signed {
            Ok(block)
        } else {
            Err(malformed("a header's checksum is wrong"))
        }
    }

    pub fn type_flag(&self) -> u8 {
        self.0[156]
    }

    /// The kind that the type flag stands for.
    pub fn kind(&self, name: &[u8]) -> Result<Kind> {
        match self.type_flag() {
            0 if name.ends_with(b"/") => Ok(Kind::Directory),
            0 | b'0' | b'7' => Ok(Kind::Regular),
            b'1' => Ok(Kind::HardLink),
            b'2' => Ok(Kind::Symlink),
            b'3' | b'4' => Ok(Kind::Device),
            b'5' => Ok(Kind::Directory),
            b'6' => Ok(Kind::Fifo),
            b'S' => Err(Error::refused(
                Code::SparseUnsupported,
                format!("{} is a sparse file", shown(name)),
            )),
            other => {
                let detail = format!("{} has the unknown type {}", shown(name), shown(&[other]));
                Err(Error::refused(Code::UnsupportedEntry, detail))
            }
        }
    }

    /// Name, with the prefix that POSIX headers (not GNU's) may carry.
    pub fn name(&self) -> Vec<u8> {
        let name = self.text(0..100);
        let prefix = if &self.0[257..263] == b"ustar\0" {
            self.text(345..500)
        } else {
            &[]
        };
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub fn link(&self) -> Vec<u8> {
        self.text(157..257).to_vec()
    }

    pub fn mode(&self) -> Result<u32> {
        let mode = self.number(100..108, "mode")?;
        u32::try_from(mode & 0o7777).map_err(|_| malformed("a mode is negative"))
    }

    pub fn uid(&self) -> Result<u32> {
        id(self.number(108..116, "owner")?)
    }

    pub fn gid(&self) -> Result<u32> {
        id(self.number(116..124, "group")?)
    }

    pub fn size(&self) -> Result<u64> {
        let size = self.number(124..136, "size")?;
        if size < 0 {
            return Err(malformed("a size is negative"));
        }
        // Whatever does not fit is over every limit, and named so.
        Ok(u64::try_from(size).unwrap_or(u64::MAX))
    }

    pub fn mtime(&self) -> Result<(i64, u32)> {
        let seconds = self.number(136..148, "time")?;
        i64::try_from(seconds)
            .map(|seconds| (seconds, 0))
            .map_err(|_| malformed("a time is out of range"))
    }

    /// The bytes of a text field up to its first NUL.
    fn text(&self, range: std::ops::Range<usize>) -> &[u8] {
        let field = &self.0[range];
        let end = field
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(field.len());
        &field[..end]
    }

    /// A numeric field: octal digits, or base-256 when the first bit is set. An empty field is 0.
    fn number(&self, range: std::ops::Range<usize>, what: &str) -> Result<i128> {
        let field = &self.0[range];
        if field[0] & 0x80 != 0 {
            // Two's complement, big-endian; the top bit is the marker and the next one the sign.
            let first = i128::from(field[0] & 0x7f) - if field[0] & 0x40 != 0 { 0x80 } else { 0 };
            return Ok(field[1..]
                .iter()
                .fold(first, |value, &byte| value << 8 | i128::from(byte)));
        }
        let digits: &[u8] = trim(field);
        digits.iter().try_fold(0_i128, |value, &byte| match byte {
            b'0'..=b'7' => Ok(value << 3 | i128::from(byte - b'0')),
            _ => Err(malformed(format!(
                "a header's {what} is no octal number: {}",
                shown(field)
            ))),
        })
    }
}

/// A field without leading spaces and without the spaces and NULs after it.
fn trim(field: &[u8]) -> &[u8] {
    let start = field
        .iter()
        .position(|&byte| byte != b' ')
        .unwrap_or(field.len());
    let end = field
        .iter()
        .rposition(|&byte| byte != b' ' && byte != 0)
        .map_or(start, |last| last + 1);
    &field[start..end.max(start)]
}

/// A user or group id that the kernel takes.
pub fn id(value: i128) -> Result<u32> {
    match u32::try_from(value) {
        Ok(id) if id <= MAX_ID => Ok(id),
        _ => Err(malformed(format!("owner or group {value} is out of range"))),
    }
}
