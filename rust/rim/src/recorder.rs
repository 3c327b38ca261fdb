//! The measurement in progress: regions of guest memory become steps of the RIM.

use std::num::NonZeroUsize;

use crate::launch::{Region, RegionKind};
use crate::observer::{Observer, Operation, Step};
use crate::payload::{GuestMemory, Payload};
use crate::rmm::{RealmParams, Rim, FIELD_SIZE, FLAG_MEASURED};
use crate::{Error, GRANULE_SIZE};

const PAGE: usize = GRANULE_SIZE as usize;
/// Memory is read in pieces of this size.
const CHUNK: usize = 64 * PAGE;

/// The running RIM, the guest memory that is measured into it, and the regions so far.
pub struct Recorder<'a> {
    rim: Rim,
    memory: GuestMemory,
    regions: Vec<Region>,
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
    pub fn start(rim: Rim, _threads: Option<NonZeroUsize>, observer: &'a mut dyn Observer) -> Self {
        observer.step(&Step {
            operation: Operation::Create,
            rim: rim.value(),
        });
        Self {
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
        let mut buffer = vec![0; CHUNK];
        let mut position = start;
        while position < end {
            let piece = &mut buffer
                [..usize::try_from(end - position).map_or(CHUNK, |left| left.min(CHUNK))];
            self.memory.read(position, piece)?;
            self.granules(kind, position, piece);
            position += piece.len() as u64;
        }
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
        self.granules(kind, start, content);
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

    /// `content` is a multiple of a page, and so is `start`.
    fn granules(&mut self, kind: RegionKind, start: u64, content: &[u8]) {
        for (granule, ipa) in content.chunks_exact(PAGE).zip((start..).step_by(PAGE)) {
            let content = self.rim.algorithm().digest(granule);
            self.rim.extend_data(ipa, &content);
            self.observer.step(&Step {
                operation: Operation::Data {
                    region: kind,
                    ipa,
                    flags: FLAG_MEASURED,
                    content: &content[..self.rim.algorithm().size()],
                },
                rim: self.rim.value(),
            });
        }
    }
}
