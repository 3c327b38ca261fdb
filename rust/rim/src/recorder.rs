//! The measurement in progress: regions of guest memory become steps of the RIM.

use std::num::NonZeroUsize;

use islet_granulehash::Kernel;

use crate::digest::Hasher;
use crate::launch::{Region, RegionKind};
use crate::observer::{Observer, Operation, Step};
use crate::payload::{GuestMemory, Payload};
use crate::rmm::{RealmParams, Rim, FIELD_SIZE, FLAG_MEASURED};
use crate::{Error, GRANULE_SIZE};

const PAGE: usize = GRANULE_SIZE as usize;

/// The running RIM, the guest memory that is measured into it, and the regions so far.
pub struct Recorder<'a> {
    rim: Rim,
    memory: GuestMemory,
    regions: Vec<Region>,
    hasher: Hasher,
    observer: &'a mut dyn Observer,
}

impl<'a> Recorder<'a> {
    /// RMI_REALM_CREATE. `threads` threads compute the digests of granules (None: one per processor).
    ///
    /// # Errors
    /// [`Error::SveVectorLength`].
    pub fn create(
        params: &RealmParams,
        threads: Option<NonZeroUsize>,
        observer: &'a mut dyn Observer,
    ) -> Result<Self, Error> {
        Ok(Self::start(Rim::create(params)?, threads, observer))
    }

    /// Like [`Recorder::create`], from a RIM of which only the realm parameters are known.
    pub fn start(rim: Rim, threads: Option<NonZeroUsize>, observer: &'a mut dyn Observer) -> Self {
        observer.step(&Step {
            operation: Operation::Create,
            rim: rim.value(),
        });
        Self {
            hasher: Hasher::new(Kernel::best(rim.algorithm().into()), threads),
            rim,
            memory: GuestMemory::default(),
            regions: Vec::new(),
            observer,
        }
    }

    /// Load a file and measure the pages that it touches, with all that is in memory by then.
    /// Returns the end of the last page.
    ///
    /// # Errors
    /// The file cannot be read; see [`Payload::read`].
    pub fn file(&mut self, kind: RegionKind, address: u64, payload: Payload) -> Result<u64, Error> {
        let start = address - address % GRANULE_SIZE;
        let end = (address + payload.size()).next_multiple_of(GRANULE_SIZE);
        self.memory.load(address, payload);
        let Self {
            rim,
            memory,
            observer,
            hasher,
            ..
        } = self;
        hasher.digest_memory(memory, start..end, |ipa, digests| {
            extend(rim, *observer, kind, ipa, digests);
        })?;
        self.regions.push(Region {
            kind,
            start,
            size: end - start,
        });
        Ok(end)
    }

    /// Give the pages up to `end` their state, one by one.
    pub fn zeroed(&mut self, start: u64, end: u64) {
        let Some(end) = end
            .checked_next_multiple_of(GRANULE_SIZE)
            .filter(|end| *end > start)
        else {
            return;
        };
        for base in (start..end).step_by(PAGE) {
            self.ripas(RegionKind::Bss, base, base + GRANULE_SIZE);
        }
        self.regions.push(Region {
            kind: RegionKind::Bss,
            start,
            size: end - start,
        });
    }

    /// RMI_RTT_INIT_RIPAS of `[base, top)`, which belongs to a region of `kind`.
    pub fn ripas(&mut self, kind: RegionKind, base: u64, top: u64) {
        self.rim.extend_ripas(base, top);
        self.observer.step(&Step {
            operation: Operation::Ripas {
                region: kind,
                base,
                top,
            },
            rim: self.rim.value(),
        });
    }

    /// Measure `content`, a multiple of a page, at the page `start`.
    pub fn area(&mut self, kind: RegionKind, start: u64, content: &[u8]) {
        let digests = self.hasher.digest(content.as_chunks().0);
        extend(&mut self.rim, self.observer, kind, start, &digests);
        self.regions.push(Region {
            kind,
            start,
            size: content.len() as u64,
        });
    }

    /// Note a region that was measured step by step.
    pub fn region(&mut self, region: Region) {
        self.regions.push(region);
    }

    /// RMI_DATA_CREATE of the granule at `ipa`, whose content is not measured.
    pub fn unmeasured(&mut self, kind: RegionKind, ipa: u64) {
        self.rim.extend_unmeasured(ipa);
        let none = [0; FIELD_SIZE];
        self.observer.step(&Step {
            operation: Operation::Data {
                region: kind,
                ipa,
                flags: 0,
                content: &none[..self.rim.algorithm().size()],
            },
            rim: self.rim.value(),
        });
    }

    /// RMI_REC_CREATE of vCPU `index`, whose parameters have the measured page `page`.
    pub fn rec(&mut self, index: u32, page: &[u8; PAGE]) {
        let content = self.rim.algorithm().digest(page);
        self.rim.extend_rec(&content);
        self.observer.step(&Step {
            operation: Operation::Rec {
                index,
                content: &content[..self.rim.algorithm().size()],
            },
            rim: self.rim.value(),
        });
    }

    /// The RIM, and the regions in the order of measurement.
    #[must_use]
    pub fn finish(self) -> (Vec<u8>, Vec<Region>) {
        (self.rim.value().to_vec(), self.regions)
    }
}

/// RMI_DATA_CREATE of the granules from `start` on that have these digests.
fn extend(
    rim: &mut Rim,
    observer: &mut dyn Observer,
    kind: RegionKind,
    start: u64,
    digests: &[[u8; FIELD_SIZE]],
) {
    let size = rim.algorithm().size();
    for (content, ipa) in digests.iter().zip((start..).step_by(PAGE)) {
        rim.extend_data(ipa, content);
        observer.step(&Step {
            operation: Operation::Data {
                region: kind,
                ipa,
                flags: FLAG_MEASURED,
                content: &content[..size],
            },
            rim: rim.value(),
        });
    }
}
