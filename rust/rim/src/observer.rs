//! Who is told of every step of a measurement, in the order in which the monitor takes them.

use crate::launch::RegionKind;

/// One change of the RIM. Digests are as long as the realm's hash, 32 or 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<'a> {
    /// What the monitor was asked for.
    pub operation: Operation<'a>,
    /// The RIM after it.
    pub rim: &'a [u8],
}

/// An operation that is measured, with the fields of its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    /// RMI_REALM_CREATE: the RIM starts as the digest of the realm parameters.
    Create,
    /// RMI_DATA_CREATE of one granule.
    Data {
        /// What the granule belongs to.
        region: RegionKind,
        /// Its address.
        ipa: u64,
        /// Bit 0: the content is measured.
        flags: u64,
        /// Digest of its 4096 bytes.
        content: &'a [u8],
    },
    /// RMI_RTT_INIT_RIPAS of `[base, top)`.
    Ripas {
        /// What the pages belong to.
        region: RegionKind,
        /// First address.
        base: u64,
        /// The address behind the last.
        top: u64,
    },
    /// RMI_REC_CREATE of one vCPU.
    Rec {
        /// Number of the vCPU.
        index: u32,
        /// Digest of the measured page of its parameters.
        content: &'a [u8],
    },
}

/// Is told of every step. Called once per granule of every file: what it does with a step costs time.
pub trait Observer {
    /// The RIM has changed.
    fn step(&mut self, step: &Step<'_>);
}

/// Nobody looks.
impl Observer for () {
    fn step(&mut self, _: &Step<'_>) {}
}

/// A closure that looks.
impl<F: FnMut(&Step<'_>)> Observer for F {
    fn step(&mut self, step: &Step<'_>) {
        self(step);
    }
}
