//! What extended headers say about the entry that follows them.

use super::header::id;
use super::malformed;
use crate::error::{shown, Code, Error, Result};

const XATTR: &[u8] = b"SCHILY.xattr.";

/// The union of the pax and GNU headers before one entry.
#[derive(Default)]
pub struct Extended {
    pub name: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pax: bool,
    gnu_name: bool,
    gnu_link: bool,
    pax_name: bool,
    pax_link: bool,
}

impl Extended {
    /// Whether a header is waiting for its entry. Global headers wait for none.
    pub fn is_present(&self) -> bool {
        self.pax || self.gnu_name || self.gnu_link
    }

    /// Take the content of the header of type `flag`: `x`, `g`, `L` or `K`.
    pub fn add(&mut self, flag: u8, data: Vec<u8>) -> Result<()> {
        let repeated = |seen: bool| {
            if seen {
                Err(malformed("an entry has two extended headers"))
            } else {
                Ok(())
            }
        };
        match flag {
            b'x' => {
                repeated(self.pax)?;
                self.pax = true;
                records(&data, |key, value| self.record(key, value))
            }
            b'g' => records(&data, |key, _| match key {
                b"comment" => Ok(()),
                _ => Err(malformed(format!("a global header sets {}", shown(key)))),
            }),
            b'L' => {
                repeated(self.gnu_name)?;
                self.gnu_name = true;
                // A pax path before it is caught by `check`.
                self.name = Some(terminated(data));
                Ok(())
            }
            _ => {
                repeated(self.gnu_link)?;
                self.gnu_link = true;
                self.link = Some(terminated(data));
                Ok(())
            }
        }
    }

    /// Refuse what readers would understand differently.
    pub fn check(&self) -> Result<()> {
        if self.gnu_name && self.pax_name || self.gnu_link && self.pax_link {
            return Err(malformed("an entry is named by a GNU and by a pax header"));
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"path" => {
                self.pax_name = true;
                self.name = Some(value.to_vec());
            }
            b"linkpath" => {
                self.pax_link = true;
                self.link = Some(value.to_vec());
            }
            b"size" => self.size = Some(decimal(value, "size")?),
            b"uid" => self.uid = Some(id(decimal(value, "uid")?.into())?),
            b"gid" => self.gid = Some(id(decimal(value, "gid")?.into())?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(Error::refused(
                    Code::SparseUnsupported,
                    "a layer has a sparse file",
                ));
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// A GNU long name without the NUL that ends it.
fn terminated(mut data: Vec<u8>) -> Vec<u8> {
    while data.last() == Some(&0) {
        data.pop();
    }
    data
}

/// Split a pax header into its records: `LENGTH KEY=VALUE\n`, the length counting the whole record.
fn records(mut data: &[u8], mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    let bad = || malformed("a pax record is malformed");
    while !data.is_empty() {
        let space = data
            .iter()
            .take(20)
            .position(|&byte| byte == b' ')
            .ok_or_else(bad)?;
        let length =
            usize::try_from(decimal(&data[..space], "record length")?).map_err(|_| bad())?;
        if length <= space + 1 || length > data.len() {
            return Err(bad());
        }
        let (record, rest) = data.split_at(length);
        let body = record[space + 1..].strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = body.iter().position(|&byte| byte == b'=').ok_or_else(bad)?;
        if equals == 0 {
            return Err(bad());
        }
        each(&body[..equals], &body[equals + 1..])?;
        data = rest;
    }
    Ok(())
}

fn decimal(text: &[u8], what: &str) -> Result<u64> {
    let bad = || {
        malformed(format!(
            "a pax {what} is no decimal number: {}",
            shown(text)
        ))
    };
    if text.is_empty() {
        return Err(bad());
    }
    text.iter().try_fold(0_u64, |value, &byte| {
        if !byte.is_ascii_digit() {
            return Err(bad());
        }
        value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u64::from(byte - b'0')))
            .ok_or_else(bad)
    })
}

/// Decimal seconds with an optional fraction; digits below a nanosecond are cut.
fn time(text: &[u8]) -> Result<(i64, u32)> {
    let bad = || malformed(format!("a pax time is malformed: {}", shown(text)));
    let (negative, unsigned) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = unsigned.splitn(2, |&byte| byte == b'.');
    let whole =
        i64::try_from(decimal(parts.next().unwrap_or_default(), "time")?).map_err(|_| bad())?;
    let mut nanoseconds = 0;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return Err(bad());
        }
        let digits = fraction
            .iter()
            .map(|byte| u32::from(byte - b'0'))
            .chain(std::iter::repeat(0));
        nanoseconds = digits.take(9).fold(0, |value, digit| value * 10 + digit);
    }
    Ok(match (negative, nanoseconds) {
        (false, _) => (whole, nanoseconds),
        (true, 0) => (-whole, 0),
        (true, _) => (-whole - 1, 1_000_000_000 - nanoseconds),
    })
}
