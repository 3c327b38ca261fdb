//! What the Realm Management Monitor measures: parameters, descriptors, the running RIM.
//!
//! Source: Realm Management Monitor specification 1.0-EAC5, A7.1 (Realm measurements), B4.4
//! (RmiRealmParams, RmmMeasurementDescriptorData, -Rec, -Ripas).

use islet_granulehash::Algorithm;
use sha2::{Digest, Sha256, Sha512};

use crate::{Error, GRANULE_SIZE};

/// Width of a digest field, whatever the algorithm.
pub const FIELD_SIZE: usize = 64;
const DESCRIPTOR_SIZE: usize = 256;
const PAGE: usize = GRANULE_SIZE as usize;
/// A granule's content, or a page of parameters.
pub type Page = [u8; PAGE];

const TYPE_DATA: u8 = 0;
const TYPE_REC: u8 = 1;
const TYPE_RIPAS: u8 = 2;
/// The content of a DATA granule is measured.
pub const FLAG_MEASURED: u64 = 1;
/// The vCPU may run from the start.
const FLAG_RUNNABLE: u64 = 1;

const FLAG_SVE: u64 = 1 << 1;
const FLAG_PMU: u64 = 1 << 2;
/// Intermediate physical address bits that the measurer asks for, whatever the memory size.
const S2SZ: u32 = 33;

/// The realm's hash function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl HashAlgorithm {
    /// Bytes of a digest.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// The digest of `data` at the start of a zero-padded field.
    #[must_use]
    pub fn digest(self, data: &[u8]) -> [u8; FIELD_SIZE] {
        let mut field = [0; FIELD_SIZE];
        match self {
            Self::Sha256 => field[..32].copy_from_slice(&Sha256::digest(data)),
            Self::Sha512 => field.copy_from_slice(&Sha512::digest(data)),
        }
        field
    }

    /// RmiHashAlgorithm.
    #[must_use]
    pub fn identifier(self) -> u8 {
        match self {
            Self::Sha256 => 0,
            Self::Sha512 => 1,
        }
    }
}

impl From<HashAlgorithm> for Algorithm {
    fn from(algorithm: HashAlgorithm) -> Self {
        match algorithm {
            HashAlgorithm::Sha256 => Self::Sha256,
            HashAlgorithm::Sha512 => Self::Sha512,
        }
    }
}

/// The monitor (and platform) whose realm parameters are assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// TF-RMM on the FVP: two breakpoints and two watchpoints.
    TfRmm,
    /// The Islet RMM: none.
    Islet,
}

/// The measured part of RmiRealmParams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RealmParams {
    /// The realm's hash function.
    pub algorithm: HashAlgorithm,
    /// The assumed monitor.
    pub profile: Profile,
    /// SVE vector length in bits; 0 means no SVE.
    pub sve_vl_bits: u32,
    /// PMU counters; 0 means no PMU.
    pub pmu_counters: u32,
}

impl RealmParams {
    /// The 4096-byte page whose digest starts the RIM.
    ///
    /// `sve_vl` and `pmu_num_ctrs` are one byte wide in the specification; the measurer stores 32 bits.
    ///
    /// # Errors
    /// [`Error::SveVectorLength`].
    pub fn page(&self) -> Result<[u8; PAGE], Error> {
        let mut flags = 0;
        let mut sve_vl = 0;
        if self.sve_vl_bits != 0 {
            if !self.sve_vl_bits.is_multiple_of(128) {
                return Err(Error::SveVectorLength(self.sve_vl_bits));
            }
            flags |= FLAG_SVE;
            sve_vl = self.sve_vl_bits / 128 - 1;
        }
        if self.pmu_counters != 0 {
            flags |= FLAG_PMU;
        }
        let points: u32 = match self.profile {
            Profile::TfRmm => 2,
            Profile::Islet => 0,
        };
        let mut page = [0; PAGE];
        put(&mut page, 0x00, &flags.to_le_bytes());
        put(&mut page, 0x08, &S2SZ.to_le_bytes());
        put(&mut page, 0x10, &sve_vl.to_le_bytes());
        put(&mut page, 0x18, &points.to_le_bytes()); // num_bps
        put(&mut page, 0x20, &points.to_le_bytes()); // num_wps
        put(&mut page, 0x28, &self.pmu_counters.to_le_bytes());
        put(&mut page, 0x30, &[self.algorithm.identifier()]);
        Ok(page)
    }
}

/// The running RIM: each operation replaces it by the digest of a descriptor that contains it.
#[derive(Debug, Clone)]
pub struct Rim {
    algorithm: HashAlgorithm,
    value: [u8; FIELD_SIZE],
}

impl Rim {
    /// RMI_REALM_CREATE.
    ///
    /// # Errors
    /// See [`RealmParams::page`].
    pub fn create(params: &RealmParams) -> Result<Self, Error> {
        Ok(Self::of_page(params.algorithm, &params.page()?))
    }

    /// RMI_REALM_CREATE with the page of parameters itself.
    #[must_use]
    pub fn of_page(algorithm: HashAlgorithm, page: &Page) -> Self {
        Self {
            algorithm,
            value: algorithm.digest(page),
        }
    }

    /// RMI_DATA_CREATE of one measured granule of 4096 bytes, whose digest is `content`.
    pub fn extend_data(&mut self, ipa: u64, content: &[u8; FIELD_SIZE]) {
        let mut descriptor = self.descriptor(TYPE_DATA);
        put(&mut descriptor, 0x50, &ipa.to_le_bytes());
        put(&mut descriptor, 0x58, &FLAG_MEASURED.to_le_bytes());
        put(&mut descriptor, 0x60, content);
        self.replace(&descriptor);
    }

    /// RMI_DATA_CREATE of one granule whose content is not measured.
    pub fn extend_unmeasured(&mut self, ipa: u64) {
        let mut descriptor = self.descriptor(TYPE_DATA);
        put(&mut descriptor, 0x50, &ipa.to_le_bytes());
        self.replace(&descriptor);
    }

    /// RMI_RTT_INIT_RIPAS of `[base, top)`.
    pub fn extend_ripas(&mut self, base: u64, top: u64) {
        let mut descriptor = self.descriptor(TYPE_RIPAS);
        put(&mut descriptor, 0x50, &base.to_le_bytes());
        put(&mut descriptor, 0x58, &top.to_le_bytes());
        self.replace(&descriptor);
    }

    /// RMI_REC_CREATE of the vCPU whose measured parameters (see [`rec_page`]) have the digest `content`.
    pub fn extend_rec(&mut self, content: &[u8; FIELD_SIZE]) {
        let mut descriptor = self.descriptor(TYPE_REC);
        put(&mut descriptor, 0x50, content);
        self.replace(&descriptor);
    }

    /// The realm's hash function.
    #[must_use]
    pub fn algorithm(&self) -> HashAlgorithm {
        self.algorithm
    }

    /// The measurement as it is now: 32 or 64 bytes.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.value[..self.algorithm.size()]
    }

    fn descriptor(&self, kind: u8) -> [u8; DESCRIPTOR_SIZE] {
        let mut descriptor = [0; DESCRIPTOR_SIZE];
        descriptor[0] = kind;
        put(
            &mut descriptor,
            0x08,
            &(DESCRIPTOR_SIZE as u64).to_le_bytes(),
        );
        put(&mut descriptor, 0x10, &self.value);
        descriptor
    }

    fn replace(&mut self, descriptor: &[u8; DESCRIPTOR_SIZE]) {
        self.value = self.algorithm.digest(descriptor);
    }
}

/// The measured page of RmiRecParams of a vCPU that is runnable with `(pc, x0)`, or of one that waits for PSCI.
#[must_use]
pub fn rec_page(start: Option<(u64, u64)>) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    if let Some((pc, x0)) = start {
        put(&mut page, 0x000, &FLAG_RUNNABLE.to_le_bytes());
        put(&mut page, 0x200, &pc.to_le_bytes());
        put(&mut page, 0x300, &x0.to_le_bytes());
    }
    page
}

fn put(target: &mut [u8], offset: usize, bytes: &[u8]) {
    target[offset..offset + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMS: RealmParams = RealmParams {
        algorithm: HashAlgorithm::Sha256,
        profile: Profile::TfRmm,
        sve_vl_bits: 0,
        pmu_counters: 0,
    };

    #[test]
    fn wide_values_spill_into_the_next_bytes() {
        let page = RealmParams {
            pmu_counters: 300,
            sve_vl_bits: 128 * 257,
            ..PARAMS
        }
        .page()
        .unwrap();
        assert_eq!(page[0x28..0x2c], [44, 1, 0, 0]);
        assert_eq!(page[0x10..0x14], [0, 1, 0, 0]);
        assert_eq!(page[0], 0b110);
    }

    #[test]
    fn an_unaligned_vector_length_is_refused() {
        let params = RealmParams {
            sve_vl_bits: 200,
            ..PARAMS
        };
        assert_eq!(Rim::create(&params).unwrap_err().code(), "sve-vl");
    }

    #[test]
    fn profiles_differ_in_debug_resources_only() {
        let tf_rmm = PARAMS.page().unwrap();
        let islet = RealmParams {
            profile: Profile::Islet,
            ..PARAMS
        }
        .page()
        .unwrap();
        let differing: Vec<usize> = (0..PAGE)
            .filter(|index| tf_rmm[*index] != islet[*index])
            .collect();
        assert_eq!(differing, [0x18, 0x20]);
    }

    #[test]
    fn a_digest_field_is_padded_with_zeroes() {
        let field = HashAlgorithm::Sha256.digest(b"abc");
        assert_eq!(
            hex::encode(&field[..32]),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(field[32..], [0; 32]);
    }
}
