//! SHA-256 and SHA-512 of many 4096-byte granules at once.
//!
//! A granule's digest does not depend on its neighbours', and all are equally long: so one thread hashes
//! several in step, in the lanes of vectors or as interleaved streams of the processor's SHA instructions.
//! [`Kernel::best`] chooses at run time:
//!
//! | kernel | needs | SHA-256 | SHA-512 |
//! | --- | --- | --- | --- |
//! | `avx512` | AVX-512F, AVX-512BW | 16 lanes | 8 lanes |
//! | `sha-ni` | SHA extensions, SSE4.1 | 3 streams | |
//! | `avx2` | AVX2 | 8 lanes | 4 lanes |
//! | `armv8` | SHA2 / SHA512 extensions | 3 streams | 2 streams |
//! | `portable` | nothing | `sha2` | `sha2` |
//!
//! | threat | answer | test |
//! | --- | --- | --- |
//! | a kernel computes a wrong digest | every kernel of the machine is compared with `sha2` | `tests::every_kernel_agrees_with_sha2` |
//! | an instruction that the processor lacks | a [`Kernel`] exists only after its features were found | `tests::kernels_are_distinct_and_the_best_is_one_of_them` |
//! | reads beyond a granule | granules are arrays; all reads are of checked slices | `tests::any_number_of_granules` |
//!
//! ```
//! use islet_granulehash::{Algorithm, Kernel, FIELD_SIZE, GRANULE_SIZE};
//!
//! let granules = vec![[0; GRANULE_SIZE]; 5];
//! let mut digests = vec![[0; FIELD_SIZE]; 5];
//! Kernel::best(Algorithm::Sha256).digest(&granules, &mut digests);
//! assert_eq!(digests[0][..4], [0xad, 0x7f, 0xac, 0xb2]);
//! ```

#[cfg(target_arch = "aarch64")]
mod armv8;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod constants;
#[cfg(any(target_arch = "x86_64", test))]
mod lanes;
#[cfg(target_arch = "x86_64")]
mod sha_ni;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", test))]
mod unroll;

use sha2::{Digest, Sha256, Sha512};

/// Bytes of a granule.
pub const GRANULE_SIZE: usize = 4096;
/// Bytes of a digest field; the digest is at its start, the rest is zero.
pub const FIELD_SIZE: usize = 64;

/// What is hashed.
pub type Granule = [u8; GRANULE_SIZE];
/// Where a digest goes.
pub type Field = [u8; FIELD_SIZE];

/// The hash function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

/// Hashes granules into as many fields. Its condition: the processor has the features of the kernel.
type Run = unsafe fn(&[Granule], &mut [Field]);

/// A way to hash granules that this machine has.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    name: &'static str,
    /// Whoever makes a `Kernel` has looked for its features.
    run: Run,
}

impl Kernel {
    /// The fastest one.
    #[must_use]
    pub fn best(algorithm: Algorithm) -> Self {
        Self::all_available(algorithm)[0]
    }

    /// All of this machine, fastest first; the last one needs no processor feature.
    #[must_use]
    pub fn all_available(algorithm: Algorithm) -> Vec<Self> {
        let mut kernels = accelerated(algorithm);
        kernels.push(Self {
            name: "portable",
            run: match algorithm {
                Algorithm::Sha256 => portable_sha256,
                Algorithm::Sha512 => portable_sha512,
            },
        });
        kernels
    }

    /// Its name, from the table above.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Put the digest of every granule into the field of the same index.
    ///
    /// # Panics
    /// When there are not as many fields as granules.
    pub fn digest(&self, granules: &[Granule], digests: &mut [Field]) {
        assert_eq!(granules.len(), digests.len(), "a field for every granule");
        // SAFETY: the features were found when this kernel was made.
        unsafe { (self.run)(granules, digests) }
    }
}

#[cfg(target_arch = "x86_64")]
fn accelerated(algorithm: Algorithm) -> Vec<Kernel> {
    let mut kernels = Vec::new();
    let mut add = |name, run| kernels.push(Kernel { name, run });
    let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
    let sha_ni = is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1");
    let avx2 = is_x86_feature_detected!("avx2");
    match algorithm {
        Algorithm::Sha256 => {
            if avx512 {
                add("avx512", avx512::sha256 as _);
            }
            if sha_ni {
                add("sha-ni", sha_ni::sha256);
            }
            if avx2 {
                add("avx2", avx2::sha256);
            }
        }
        Algorithm::Sha512 => {
            if avx512 {
                add("avx512", avx512::sha512 as _);
            }
            if avx2 {
                add("avx2", avx2::sha512);
            }
        }
    }
    kernels
}

#[cfg(target_arch = "aarch64")]
fn accelerated(algorithm: Algorithm) -> Vec<Kernel> {
    use std::arch::is_aarch64_feature_detected;

    let (found, run): (bool, Run) = match algorithm {
        Algorithm::Sha256 => (is_aarch64_feature_detected!("sha2"), armv8::sha256),
        Algorithm::Sha512 => (is_aarch64_feature_detected!("sha3"), armv8::sha512),
    };
    found
        .then_some(Kernel { name: "armv8", run })
        .into_iter()
        .collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn accelerated(_: Algorithm) -> Vec<Kernel> {
    Vec::new()
}

fn portable_sha256(granules: &[Granule], digests: &mut [Field]) {
    for (granule, field) in granules.iter().zip(digests) {
        *field = [0; FIELD_SIZE];
        field[..32].copy_from_slice(&Sha256::digest(granule));
    }
}

fn portable_sha512(granules: &[Granule], digests: &mut [Field]) {
    for (granule, field) in granules.iter().zip(digests) {
        field.copy_from_slice(&Sha512::digest(granule));
    }
}

/// Hash granules in groups of `N`; in a last, smaller group the last granule stands for those that lack.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn each_group<const N: usize>(
    granules: &[Granule],
    digests: &mut [Field],
    hash: impl Fn([&Granule; N]) -> [Field; N],
) {
    for (granules, digests) in granules.chunks(N).zip(digests.chunks_mut(N)) {
        let last = granules.len() - 1;
        let group = std::array::from_fn(|lane| &granules[lane.min(last)]);
        digests.copy_from_slice(&hash(group)[..granules.len()]);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    /// Granules that look random, the same for the same seed.
    pub(crate) fn granules(seed: u64, count: usize) -> Vec<Granule> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..count)
            .map(|_| std::array::from_fn(|_| next()))
            .collect()
    }

    /// What `sha2` says.
    pub(crate) fn expected(algorithm: Algorithm, granules: &[Granule]) -> Vec<Field> {
        let mut digests = vec![[0; FIELD_SIZE]; granules.len()];
        match algorithm {
            Algorithm::Sha256 => portable_sha256(granules, &mut digests),
            Algorithm::Sha512 => portable_sha512(granules, &mut digests),
        }
        digests
    }

    fn check(algorithm: Algorithm, granules: &[Granule]) {
        let expected = expected(algorithm, granules);
        for kernel in Kernel::all_available(algorithm) {
            // What was in a field before must not shine through.
            let mut digests = vec![[0xaa; FIELD_SIZE]; granules.len()];
            kernel.digest(granules, &mut digests);
            assert_eq!(digests, expected, "{} of {algorithm:?}", kernel.name());
        }
    }

    #[test]
    fn kernels_are_distinct_and_the_best_is_one_of_them() {
        for algorithm in ALGORITHMS {
            let names: Vec<_> = Kernel::all_available(algorithm)
                .iter()
                .map(Kernel::name)
                .collect();
            assert_eq!(names[0], Kernel::best(algorithm).name());
            assert_eq!(*names.last().unwrap(), "portable");
            let distinct: std::collections::HashSet<_> = names.iter().collect();
            assert_eq!(distinct.len(), names.len());
        }
    }

    #[test]
    fn the_granule_of_zeroes() {
        let field = expected(Algorithm::Sha256, &[[0; GRANULE_SIZE]])[0];
        let digest = "ad7facb2586fc6e966c004d7d1d16b024f5805ff7cb47c7a85dabd8b48892ca7";
        assert_eq!(hex::encode(&field[..32]), digest);
        assert_eq!(field[32..], [0; 32]);
        for algorithm in ALGORITHMS {
            check(algorithm, &[[0; GRANULE_SIZE]]);
        }
    }

    #[test]
    fn any_number_of_granules() {
        // An interpreter, which has the instructions that this machine may lack, is slow.
        let counts: &[usize] = if cfg!(miri) {
            &[16]
        } else {
            &[0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 35]
        };
        let granules = granules(7, 35);
        for algorithm in ALGORITHMS {
            for count in counts {
                check(algorithm, &granules[..*count]);
            }
        }
    }

    #[test]
    #[should_panic(expected = "a field for every granule")]
    fn fields_are_counted() {
        Kernel::best(Algorithm::Sha256).digest(&granules(1, 2), &mut [[0; FIELD_SIZE]; 1]);
    }

    proptest! {
        #![proptest_config(if cfg!(miri) { ProptestConfig::with_cases(1) } else { ProptestConfig::default() })]

        #[test]
        fn every_kernel_agrees_with_sha2(
            content in prop::collection::vec(prop::array::uniform32(any::<u8>()), 1..40), fill in any::<u8>(),
        ) {
            // A random piece, repeated at distances that differ from granule to granule, in a sea of one byte.
            let granules: Vec<Granule> = content
                .iter()
                .enumerate()
                .map(|(index, piece)| {
                    let mut granule = [fill; GRANULE_SIZE];
                    for offset in (index..GRANULE_SIZE - 32).step_by(97 + index) {
                        granule[offset..offset + 32].copy_from_slice(piece);
                    }
                    granule
                })
                .collect();
            for algorithm in ALGORITHMS {
                check(algorithm, &granules);
            }
        }
    }
}
