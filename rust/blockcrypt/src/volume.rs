//! A mapping over a range of a file, at any byte offset.

use std::fs::File;
use std::os::unix::fs::FileExt;

use zeroize::Zeroizing;

use crate::{Error, Mapping};

/// Bytes processed at once.
const CHUNK: usize = 1 << 20;

/// The encrypted range `start..start + size` of a file, seen in plaintext.
///
/// Positions are bytes inside the range. Parts of a sparse file that were never written decrypt to noise.
#[derive(Debug)]
pub struct Volume<'a> {
    mapping: &'a Mapping,
    file: &'a File,
    start: u64,
    size: u64,
}

impl<'a> Volume<'a> {
    /// Lay `mapping` over `size` bytes of `file` from byte `start`.
    ///
    /// # Errors
    /// `size` is not a multiple of the crypto sector, or the range overflows.
    pub fn new(mapping: &'a Mapping, file: &'a File, start: u64, size: u64) -> Result<Self, Error> {
        if !size.is_multiple_of(mapping.sector_size()) {
            return Err(Error::Alignment {
                what: "a volume size",
                value: size,
                unit: mapping.sector_size(),
            });
        }
        if start.checked_add(size).is_none() {
            return Err(Error::Range {
                offset: start,
                end: u64::MAX,
                size,
            });
        }
        Ok(Self {
            mapping,
            file,
            start,
            size,
        })
    }

    /// Fill `buffer` with the plaintext from byte `offset`.
    ///
    /// # Errors
    /// The range lies outside the volume, or the file refused.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.check(offset, buffer.len())?;
        for (position, part) in parts(offset, buffer) {
            let (first, mut sectors) = self.covering(position, part.len());
            self.load(first, &mut sectors)?;
            let skip = to_usize(position - first);
            part.copy_from_slice(&sectors[skip..skip + part.len()]);
        }
        Ok(())
    }

    /// Write `data` as plaintext from byte `offset`; crypto sectors that it covers in part are read first.
    ///
    /// # Errors
    /// The range lies outside the volume, or the file refused.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.check(offset, data.len())?;
        let size = self.mapping.sector_size();
        let mut position = offset;
        for part in data.chunks(CHUNK) {
            let (first, mut sectors) = self.covering(position, part.len());
            let skip = to_usize(position - first);
            if skip != 0 || !(part.len() as u64).is_multiple_of(size) {
                self.load(first, &mut sectors)?;
            }
            sectors[skip..skip + part.len()].copy_from_slice(part);
            self.mapping.encrypt(first / 512, &mut sectors)?;
            self.file.write_all_at(&sectors, self.start + first)?;
            position += part.len() as u64;
        }
        Ok(())
    }

    /// The whole crypto sectors around `length` bytes at `position`: first byte, and a buffer for them.
    fn covering(&self, position: u64, length: usize) -> (u64, Zeroizing<Vec<u8>>) {
        let size = self.mapping.sector_size();
        let first = position / size * size;
        let end = (position + length as u64).div_ceil(size) * size;
        (first, Zeroizing::new(vec![0; to_usize(end - first)]))
    }

    fn load(&self, first: u64, sectors: &mut [u8]) -> Result<(), Error> {
        self.file.read_exact_at(sectors, self.start + first)?;
        self.mapping.decrypt(first / 512, sectors)
    }

    /// Require that `length` bytes from `offset` lie inside the volume.
    ///
    /// # Errors
    /// They do not.
    pub fn check(&self, offset: u64, length: usize) -> Result<(), Error> {
        match offset.checked_add(length as u64) {
            Some(end) if end <= self.size => Ok(()),
            end => Err(Error::Range {
                offset,
                end: end.unwrap_or(u64::MAX),
                size: self.size,
            }),
        }
    }
}

/// Lengths inside one chunk always fit.
fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn parts(offset: u64, buffer: &mut [u8]) -> impl Iterator<Item = (u64, &mut [u8])> {
    buffer.chunks_mut(CHUNK).scan(offset, |position, part| {
        let here = *position;
        *position += part.len() as u64;
        Some((here, part))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Options;

    fn scratch(bytes: &[u8]) -> File {
        let path = std::env::temp_dir().join(format!(
            "islet-volume-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(path).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn mapping(sector_size: u32) -> Mapping {
        let options = Options {
            sector_size,
            ..Options::default()
        };
        Mapping::new("aes-xts-plain64".parse().unwrap(), &[7; 64], options).unwrap()
    }

    proptest! {
        #[test]
        fn any_offset_reads_back_and_spares_its_neighbours(
            large in any::<bool>(), offset in 0..20_000usize, length in 0..12_000usize,
        ) {
            let mapping = mapping(if large { 4096 } else { 512 });
            let (start, size) = (1000u64, 32_768usize);
            let file = scratch(&vec![9; size + 2000]);
            let volume = Volume::new(&mapping, &file, start, size as u64).unwrap();
            let mut before = vec![0; size];
            volume.read_at(0, &mut before).unwrap();
            let data: Vec<u8> = (0..length).map(|index| (index % 253) as u8).collect();
            volume.write_at(offset as u64, &data).unwrap();
            let mut after = vec![0; size];
            volume.read_at(0, &mut after).unwrap();
            before[offset..offset + length].copy_from_slice(&data);
            prop_assert_eq!(before, after);
            let mut edges = [0; 2000];
            file.read_exact_at(&mut edges[..1000], 0).unwrap();
            file.read_exact_at(&mut edges[1000..], start + size as u64).unwrap();
            prop_assert_eq!(edges, [9; 2000]);
        }
    }

    #[test]
    fn writes_larger_than_a_chunk() {
        let mapping = mapping(4096);
        let size = 3 * CHUNK;
        let file = scratch(&vec![0; size]);
        let volume = Volume::new(&mapping, &file, 0, size as u64).unwrap();
        let data: Vec<u8> = (0..2 * CHUNK + 777)
            .map(|index| (index % 249) as u8)
            .collect();
        volume.write_at(333, &data).unwrap();
        let mut back = vec![0; data.len()];
        volume.read_at(333, &mut back).unwrap();
        assert!(back == data);
    }

    #[test]
    fn outside_is_refused() {
        let mapping = mapping(512);
        let file = scratch(&[0; 1024]);
        let volume = Volume::new(&mapping, &file, 0, 1024).unwrap();
        assert!(volume.read_at(1000, &mut [0; 25]).is_err());
        assert!(volume.write_at(u64::MAX, &[0]).is_err());
        assert!(Volume::new(&mapping, &file, 0, 1000).is_err());
    }
}
