//! A strict reader of tar archives.
//!
//! Readers of tar disagree on repeated extended headers, on global headers, on sizes given twice and on what
//! follows the end marker, and each disagreement has let somebody smuggle a file past a check. The general
//! tar crates are lenient by purpose, so none of them can say that an archive has one reading only. This
//! reader accepts pre-POSIX, ustar, GNU (long names, base-256 numbers) and pax archives in the one way in
//! which they agree and refuses the rest. It allocates for extended headers alone, up to a set limit.
//!
//! Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; OCI image-spec 1.1,
//! layer.md; CVE-2025-62518 for the size of pax against that of the header.

mod header;
mod pax;

use std::io::{self, BufRead, BufReader, Read};

use crate::error::{Code, Error, Result};
use crate::stream::CHUNK;
use header::{Block, BLOCK};
use pax::Extended;

/// Kind of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Types `0`, NUL and `7`; the only one with data.
    #[default]
    Regular,
    /// Type `1`.
    HardLink,
    /// Type `2`.
    Symlink,
    /// Types `3` and `4`.
    Device,
    /// Type `5`, and NUL with a trailing slash.
    Directory,
    /// Type `6`.
    Fifo,
}

/// One entry of an archive, extended headers applied. Reused from entry to entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Name as the archive has it.
    pub name: Vec<u8>,
    /// Target of a link as the archive has it.
    pub link: Vec<u8>,
    /// Kind.
    pub kind: Kind,
    /// Permission bits, set-id and sticky bits: 12 bits.
    pub mode: u32,
    /// Owner, never 2^32-1.
    pub uid: u32,
    /// Group, never 2^32-1.
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes of data; 0 for all but regular files.
    pub size: u64,
    /// Extended attributes: name without `SCHILY.xattr.`, value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Limits of the reader.
#[derive(Clone, Copy, Debug)]
pub struct TarLimits {
    /// Largest size that a header may declare, bytes.
    pub data: u64,
    /// Largest extended header, bytes.
    pub extended: u64,
    /// Most entries.
    pub entries: u64,
}

/// Reads the entries of an archive in order.
pub struct TarReader<R> {
    input: BufReader<R>,
    limits: TarLimits,
    entries: u64,
    /// Data of the current entry that was not read yet.
    left: u64,
    /// Padding after that data.
    padding: u64,
    ended: bool,
}

impl<R: Read> TarReader<R> {
    /// Read from the start of `input`.
    pub fn new(input: R, limits: TarLimits) -> Self {
        let input = BufReader::with_capacity(CHUNK, input);
        Self {
            input,
            limits,
            entries: 0,
            left: 0,
            padding: 0,
            ended: false,
        }
    }

    /// Give back the input, wherever it is.
    pub fn into_inner(self) -> R {
        self.input.into_inner()
    }

    /// Go to the next entry; data of the one before is skipped. False at the end of the archive.
    ///
    /// # Errors
    /// `tar_malformed`, `tar_truncated`, `tar_trailing_data`, `sparse_unsupported`, `unsupported_entry`,
    /// `limit_exceeded`, and those of the input.
    pub fn next(&mut self, entry: &mut Entry) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        self.skip(self.left + self.padding)?;
        (self.left, self.padding) = (0, 0);
        let mut extended = Extended::default();
        loop {
            let Some(block) = self.block()? else {
                if extended.is_present() {
                    return Err(malformed("an extended header has no entry after it"));
                }
                self.ended = true;
                return Ok(false);
            };
            match block.type_flag() {
                flag @ (b'x' | b'g' | b'L' | b'K') => {
                    let data = self.extended_data(&block)?;
                    extended.add(flag, data)?;
                }
                _ => {
                    self.count()?;
                    self.fill(entry, &block, extended)?;
                    return Ok(true);
                }
            }
        }
    }

    /// Read some of the current entry's data; 0 at its end.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let want = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let count = self.input.read(&mut buffer[..want]).map_err(input_error)?;
        if count == 0 {
            return Err(truncated());
        }
        self.left -= count as u64;
        Ok(count)
    }

    fn count(&mut self) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            let detail = format!("a layer has more than {} entries", self.limits.entries);
            return Err(Error::refused(Code::LimitExceeded, detail));
        }
        Ok(())
    }

    /// The next header block, its checksum checked; none at the end of the archive.
    fn block(&mut self) -> Result<Option<Block>> {
        let mut bytes = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            match self.input.read(&mut bytes[have..]).map_err(input_error)? {
                0 if have == 0 => return Ok(None),
                0 => return Err(truncated()),
                count => have += count,
            }
        }
        if bytes.iter().all(|&byte| byte == 0) {
            self.only_zeros()?;
            return Ok(None);
        }
        Block::checked(bytes).map(Some)
    }

    /// Require that nothing but zeros follows the end marker.
    fn only_zeros(&mut self) -> Result<()> {
        loop {
            let chunk = self.input.fill_buf().map_err(input_error)?;
            if chunk.is_empty() {
                return Ok(());
            }
            if chunk.iter().any(|&byte| byte != 0) {
                return Err(Error::refused(
                    Code::TarTrailingData,
                    "a layer goes on after its end marker",
                ));
            }
            let count = chunk.len();
            self.input.consume(count);
        }
    }

    /// Content of the extended header that `block` announces.
    fn extended_data(&mut self, block: &Block) -> Result<Vec<u8>> {
        let size = block.size()?;
        if size > self.limits.extended {
            let detail = format!(
                "an extended header of {size} bytes is over {} bytes",
                self.limits.extended
            );
            return Err(Error::refused(Code::LimitExceeded, detail));
        }
        let mut data = Vec::new();
        (&mut self.input)
            .take(size)
            .read_to_end(&mut data)
            .map_err(input_error)?;
        if data.len() as u64 != size {
            return Err(truncated());
        }
        self.skip(padding(size))?;
        Ok(data)
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        let skipped =
            io::copy(&mut (&mut self.input).take(count), &mut io::sink()).map_err(input_error)?;
        if skipped == count {
            Ok(())
        } else {
            Err(truncated())
        }
    }

    fn fill(&mut self, entry: &mut Entry, block: &Block, extended: Extended) -> Result<()> {
        extended.check()?;
        entry.name = extended.name.unwrap_or_else(|| block.name());
        entry.link = extended.link.unwrap_or_else(|| block.link());
        entry.kind = block.kind(&entry.name)?;
        entry.mode = block.mode()?;
        entry.uid = extended.uid.map_or_else(|| block.uid(), Ok)?;
        entry.gid = extended.gid.map_or_else(|| block.gid(), Ok)?;
        entry.mtime = extended.mtime.map_or_else(|| block.mtime(), Ok)?;
        entry.xattrs = extended.xattrs;
        let size = extended.size.map_or_else(|| block.size(), Ok)?;
        entry.size = if entry.kind == Kind::Regular { size } else { 0 };
        if entry.size > self.limits.data {
            let detail = format!(
                "an entry of {size} bytes is over the limit of {} bytes",
                self.limits.data
            );
            return Err(Error::refused(Code::LimitExceeded, detail));
        }
        self.left = entry.size;
        self.padding = padding(entry.size);
        Ok(())
    }
}

/// Bytes between the end of `size` bytes of data and the next block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn malformed(detail: impl Into<String>) -> Error {
    Error::refused(Code::TarMalformed, detail)
}

fn truncated() -> Error {
    Error::refused(Code::TarTruncated, "a layer's archive ends early")
}

fn input_error(error: io::Error) -> Error {
    Error::from_io(error, |foreign| Error::io("reading a layer", foreign))
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
