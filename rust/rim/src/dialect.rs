//! The launch sequence of the Realm Virtual Machine specification: the second dialect.
//!
//! All RAM gets its state first, in blocks as large as the translation tables allow; then every
//! blob is measured in the order of addresses, then one REC, then granules whose content is not
//! measured. Where things stand is the VMM's choice and comes from the caller.
//!
//! Source: Realm Virtual Machine specification 0.3 (veraison/cca-realm-measurements,
//! docs/realm-vm.md); RMM specification 1.0-rel0, A7.1 and B4.4 (RmiRealmParams).

use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::launch::{Region, RegionKind};
use crate::observer::Observer;
use crate::payload::Payload;
use crate::recorder::Recorder;
use crate::rmm::{rec_page, HashAlgorithm, Page, Rim};
use crate::{Error, GRANULE_SIZE};

const FLAG_LPA2: u64 = 1;
const FLAG_SVE: u64 = 1 << 1;
const FLAG_PMU: u64 = 1 << 2;

const PAGE_BITS: u32 = 12;
const BITS_PER_LEVEL: u32 = 9;
/// Up to this many bits, the tables of the first level are concatenated into one.
const CONCATENATED_BITS: u32 = 4;
/// Smallest and largest realm address space, in bits, whose translation tables are known.
pub const IPA_BITS: std::ops::RangeInclusive<u8> = 20..=52;

/// Realm parameters as the RMM stores them: one byte each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// The realm's hash function.
    pub algorithm: HashAlgorithm,
    /// Bits of the realm's address space; within [`IPA_BITS`].
    pub ipa_bits: u8,
    /// Large physical addresses.
    pub lpa2: bool,
    /// SVE vector length in bits, a multiple of 128; 0 means no SVE.
    pub sve_vl_bits: u16,
    /// Breakpoints, at least 1.
    pub breakpoints: u8,
    /// Watchpoints, at least 1.
    pub watchpoints: u8,
    /// PMU counters; None means no PMU.
    pub pmu_counters: Option<u8>,
}

impl Parameters {
    /// The 4096-byte page whose digest starts the RIM.
    #[must_use]
    pub fn page(&self) -> Page {
        let mut flags = if self.lpa2 { FLAG_LPA2 } else { 0 };
        if self.sve_vl_bits > 0 {
            flags |= FLAG_SVE;
        }
        if self.pmu_counters.is_some() {
            flags |= FLAG_PMU;
        }
        let mut page = [0; GRANULE_SIZE as usize];
        page[..8].copy_from_slice(&flags.to_le_bytes());
        page[0x08] = self.ipa_bits;
        page[0x10] = (self.sve_vl_bits / 128).saturating_sub(1) as u8;
        // The RMM counts breakpoints and watchpoints from one less, like ID_AA64DFR0_EL1.
        page[0x18] = self.breakpoints.saturating_sub(1);
        page[0x20] = self.watchpoints.saturating_sub(1);
        page[0x28] = self.pmu_counters.unwrap_or(0);
        page[0x30] = self.algorithm.identifier();
        page
    }
}

/// The sizes of blocks and pages that translation tables of `ipa_bits` can map, as a bit mask.
#[must_use]
pub fn block_sizes(ipa_bits: u8) -> u64 {
    let table_bits = u32::from(ipa_bits).saturating_sub(PAGE_BITS);
    let mut levels = table_bits.div_ceil(BITS_PER_LEVEL).max(1);
    if levels > 1 && table_bits - BITS_PER_LEVEL * (levels - 1) <= CONCATENATED_BITS {
        levels -= 1;
    }
    (0..levels.min(4)).fold(0, |mask, level| {
        mask | GRANULE_SIZE << (BITS_PER_LEVEL * level)
    })
}

/// Cut `[base, top)` into the largest blocks that fit, ascending.
///
/// `base` and `top` are multiples of a granule, and `sizes` is of [`block_sizes`].
pub fn blocks(base: u64, top: u64, sizes: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut position = base;
    std::iter::from_fn(move || {
        let left = top.checked_sub(position).filter(|left| *left > 0)?;
        let size = (0..u64::BITS)
            .rev()
            .map(|bit| 1 << bit)
            .find(|size| sizes & size != 0 && position.is_multiple_of(*size) && *size <= left)
            .unwrap_or(left);
        let start = position;
        position += size;
        Some((start, position))
    })
}

/// What stands in RAM when the realm starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// What it is.
    pub kind: RegionKind,
    /// Its address, which need not be that of a granule.
    pub start: u64,
    /// Its content.
    pub content: Content,
}

/// Where a blob's content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A file.
    File(PathBuf),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// A launch: everything that its RIM depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The realm parameters.
    pub parameters: Parameters,
    /// RAM: first address and bytes, both multiples of a granule.
    pub ram: Vec<(u64, u64)>,
    /// The blobs, in any order.
    pub blobs: Vec<Blob>,
    /// Where the only measured vCPU starts: program counter and X0. None: no vCPU is measured.
    pub start: Option<(u64, u64)>,
    /// The event log's area: first address and bytes, both multiples of a granule.
    pub log: Option<(u64, u64)>,
}

/// Measure a launch; returns the RIM and the regions in the order of measurement.
///
/// # Errors
/// A file cannot be read, or two blobs share a granule ([`Error::Overlap`]): no monitor would create it twice.
pub fn measure(
    launch: &Launch,
    threads: Option<NonZeroUsize>,
    observer: &mut dyn Observer,
) -> Result<(Vec<u8>, Vec<Region>), Error> {
    let parameters = &launch.parameters;
    let opened = open_blobs(&launch.blobs)?;
    let rim = Rim::of_page(parameters.algorithm, &parameters.page());
    let mut recorder = Recorder::start(rim, threads, observer);
    let mut ram = launch.ram.clone();
    ram.sort_unstable();
    for (start, size) in ram {
        for (base, top) in blocks(start, start + size, block_sizes(parameters.ipa_bits)) {
            recorder.ripas(RegionKind::Ram, base, top);
        }
        recorder.region(Region {
            kind: RegionKind::Ram,
            start,
            size,
        });
    }
    for blob in opened {
        match blob.content {
            Opened::File(payload) => {
                recorder.file(blob.kind, blob.start, payload)?;
            }
            Opened::Pages(start, pages) => recorder.area(blob.kind, start, &pages),
        }
    }
    if launch.start.is_some() {
        recorder.rec(0, &rec_page(launch.start));
    }
    if let Some((start, size)) = launch.log {
        for ipa in (start..start + size).step_by(GRANULE_SIZE as usize) {
            recorder.unmeasured(RegionKind::Log, ipa);
        }
        recorder.region(Region {
            kind: RegionKind::Log,
            start,
            size,
        });
    }
    Ok(recorder.finish())
}

struct OpenedBlob {
    kind: RegionKind,
    start: u64,
    content: Opened,
}

enum Opened {
    File(Payload),
    /// Whole granules from this address on.
    Pages(u64, Vec<u8>),
}

/// Open the blobs, in the order of addresses.
fn open_blobs(blobs: &[Blob]) -> Result<Vec<OpenedBlob>, Error> {
    let mut blobs: Vec<&Blob> = blobs.iter().collect();
    blobs.sort_by_key(|blob| blob.start);
    let mut end = 0;
    let mut out = Vec::new();
    for blob in blobs {
        let (size, content) = match &blob.content {
            Content::File(path) => {
                let payload = Payload::open(blob.kind.name(), path, 1)?;
                (payload.size(), Opened::File(payload))
            }
            Content::Bytes(bytes) => (bytes.len() as u64, pages(blob.start, bytes)),
        };
        let first = blob.start - blob.start % GRANULE_SIZE;
        if first < end {
            return Err(Error::Overlap(blob.kind.name()));
        }
        end = blob
            .start
            .checked_add(size)
            .and_then(|end| end.checked_next_multiple_of(GRANULE_SIZE))
            .ok_or(Error::Overlap(blob.kind.name()))?;
        out.push(OpenedBlob {
            kind: blob.kind,
            start: blob.start,
            content,
        });
    }
    Ok(out)
}

/// The granules that `bytes` at `start` touch.
fn pages(start: u64, bytes: &[u8]) -> Opened {
    let before = (start % GRANULE_SIZE) as usize;
    let mut pages = vec![0; before];
    pages.extend_from_slice(bytes);
    pages.resize(pages.len().next_multiple_of(GRANULE_SIZE as usize), 0);
    Opened::Pages(start - start % GRANULE_SIZE, pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parameters(algorithm: HashAlgorithm) -> Parameters {
        Parameters {
            algorithm,
            ipa_bits: 48,
            lpa2: false,
            sve_vl_bits: 0,
            breakpoints: 2,
            watchpoints: 2,
            pmu_counters: None,
        }
    }

    #[test]
    fn the_known_answers() {
        let rim = |algorithm| {
            let page = parameters(algorithm).page();
            hex::encode(Rim::of_page(algorithm, &page).value())
        };
        assert_eq!(
            rim(HashAlgorithm::Sha256),
            "6739dfb22b75ee1268d08dfa8369f501bc0b066243553f069f560d1fa1172973"
        );
        assert_eq!(
            rim(HashAlgorithm::Sha512),
            "799e434048fb57eb9d4f0e2a2b98158720377252deab2bdfcd69b5a8f82237f4\
             34bd6bb1c75bf160a2d49382f733b3439a3ff769e4ea5dd9a6f72239d44bbbab"
        );
    }

    #[test]
    fn every_parameter_has_its_byte() {
        let page = Parameters {
            ipa_bits: 33,
            lpa2: true,
            sve_vl_bits: 2048,
            breakpoints: 16,
            watchpoints: 4,
            pmu_counters: Some(8),
            ..parameters(HashAlgorithm::Sha512)
        }
        .page();
        let bytes: Vec<u8> = [0, 8, 0x10, 0x18, 0x20, 0x28, 0x30]
            .map(|offset| page[offset])
            .to_vec();
        assert_eq!(bytes, [7, 33, 15, 15, 3, 8, 1]);
    }

    #[test]
    fn block_sizes_follow_the_address_space() {
        for (bits, mask) in [
            (52, 0x80_4020_1000),
            (44, 0x80_4020_1000),
            (43, 0x4020_1000),
            (35, 0x4020_1000),
            (34, 0x20_1000),
            (26, 0x20_1000),
            (25, 0x1000),
            (20, 0x1000),
        ] {
            assert_eq!(block_sizes(bits), mask, "{bits}");
        }
    }

    #[test]
    fn blocks_are_as_large_as_alignment_and_rest_allow() {
        let first = |base, top| blocks(base, top, 0x4020_1000).next().map(|(a, b)| b - a);
        assert_eq!(first(0x8000_0000, 0x8020_0000), Some(0x20_0000));
        assert_eq!(first(0x8000_1000, 0x8020_0000), Some(0x1000));
        assert_eq!(first(0x40_0000, 0x50_0000), Some(0x1000));
        assert_eq!(first(0, 0x4000_0000), Some(0x4000_0000));
        assert_eq!(first(0x1000, 0x1000), None);
    }

    fn launch(blobs: Vec<Blob>) -> Launch {
        Launch {
            parameters: Parameters {
                ipa_bits: 33,
                ..parameters(HashAlgorithm::Sha256)
            },
            ram: vec![(0x8000_0000, 256 << 20)],
            blobs,
            start: Some((0x8000_0000, 0x8fe0_0000)),
            log: Some((0x8fff_0000, 0x1_0000)),
        }
    }

    fn blob(kind: RegionKind, start: u64, size: usize) -> Blob {
        Blob {
            kind,
            start,
            content: Content::Bytes(vec![7; size]),
        }
    }

    #[test]
    fn memory_comes_first_then_blobs_by_address_then_the_log() {
        let launch = launch(vec![
            blob(RegionKind::DeviceTree, 0x8fe0_0000, 65536),
            blob(RegionKind::Kernel, 0x8000_0800, 4096),
        ]);
        let mut steps = 0;
        let mut observer = |_: &crate::observer::Step<'_>| steps += 1;
        let (_, regions) = measure(&launch, None, &mut observer).unwrap();
        let shown: Vec<_> = regions
            .iter()
            .map(|region| (region.kind.name(), region.start, region.size))
            .collect();
        assert_eq!(
            shown,
            [
                ("ram", 0x8000_0000, 256 << 20),
                ("kernel", 0x8000_0000, 8192),
                ("dtb", 0x8fe0_0000, 65536),
                ("log", 0x8fff_0000, 65536),
            ]
        );
        // Parameters, blocks of 2 MiB, granules, one REC, granules of the log.
        assert_eq!(steps, 1 + 128 + 2 + 16 + 1 + 16);
    }

    #[test]
    fn blobs_that_share_a_granule_are_refused() {
        let launch = launch(vec![
            blob(RegionKind::Kernel, 0x8000_0000, 5000),
            blob(RegionKind::Initrd, 0x8000_1800, 100),
        ]);
        let refused = measure(&launch, None, &mut ()).unwrap_err();
        assert_eq!(refused.code(), "layout");
    }

    proptest! {
        #[test]
        fn blocks_cover_the_range_without_gaps(pages in 0u64..4096, count in 0u64..4096, bits in IPA_BITS) {
            let (base, top) = (pages * GRANULE_SIZE, (pages + count) * GRANULE_SIZE);
            let sizes = block_sizes(bits);
            let mut position = base;
            for (start, end) in blocks(base, top, sizes) {
                prop_assert_eq!(start, position);
                prop_assert!(sizes & (end - start) != 0 && start % (end - start) == 0);
                position = end;
            }
            prop_assert_eq!(position, top);
        }
    }
}
