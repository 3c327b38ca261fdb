//! AVX2: eight lanes of SHA-256, four of SHA-512.

use std::arch::x86_64::*;

use crate::lanes::{self, Lanes};
use crate::{each_group, Field, Granule};

/// Eight 32-bit words.
#[derive(Clone, Copy)]
struct Narrow(__m256i);

/// Four 64-bit words.
#[derive(Clone, Copy)]
struct Wide(__m256i);

/// Rotate right; `LEFT` is the complement of `RIGHT`.
macro_rules! rotate {
    ($x:expr, $right:ident, $left:ident, $r:literal of $bits:literal) => {
        _mm256_xor_si256($right::<$r>($x), $left::<{ $bits - $r }>($x))
    };
}

macro_rules! xor {
    ($a:expr, $b:expr, $c:expr) => {
        _mm256_xor_si256(_mm256_xor_si256($a, $b), $c)
    };
}

/// What does not depend on the width of a word.
macro_rules! bitwise {
    () => {
        #[inline(always)]
        unsafe fn choose(self, f: Self, g: Self) -> Self {
            // SAFETY: the caller's: AVX2.
            unsafe {
                let differing = _mm256_xor_si256(f.0, g.0);
                Self(_mm256_xor_si256(g.0, _mm256_and_si256(self.0, differing)))
            }
        }

        #[inline(always)]
        unsafe fn majority(self, b: Self, c: Self) -> Self {
            // Written so that the compiler shares the differences with the round before.
            // SAFETY: the caller's: AVX2.
            unsafe {
                let ab = _mm256_xor_si256(self.0, b.0);
                let bc = _mm256_xor_si256(b.0, c.0);
                Self(_mm256_xor_si256(b.0, _mm256_and_si256(ab, bc)))
            }
        }
    };
}

macro_rules! rotate32 {
    ($x:expr, $r:literal) => {
        rotate!($x, _mm256_srli_epi32, _mm256_slli_epi32, $r of 32)
    };
}

macro_rules! rotate64 {
    ($x:expr, $r:literal) => {
        rotate!($x, _mm256_srli_epi64, _mm256_slli_epi64, $r of 64)
    };
}

impl Lanes<8> for Narrow {
    type Word = u32;

    bitwise!();

    #[inline(always)]
    unsafe fn splat(word: u32) -> Self {
        // SAFETY: the caller's: AVX2.
        Self(unsafe { _mm256_set1_epi32(word.cast_signed()) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's: AVX2.
        Self(unsafe { _mm256_add_epi32(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn big_sigma0(self) -> Self {
        let x = self.0;
        // SAFETY: the caller's: AVX2.
        Self(unsafe { xor!(rotate32!(x, 2), rotate32!(x, 13), rotate32!(x, 22)) })
    }

    #[inline(always)]
    unsafe fn big_sigma1(self) -> Self {
        let x = self.0;
        // SAFETY: the caller's: AVX2.
        Self(unsafe { xor!(rotate32!(x, 6), rotate32!(x, 11), rotate32!(x, 25)) })
    }

    #[inline(always)]
    unsafe fn small_sigma0(self) -> Self {
        let x = self.0;
        // SAFETY: the caller's: AVX2.
        Self(unsafe { xor!(rotate32!(x, 7), rotate32!(x, 18), _mm256_srli_epi32::<3>(x)) })
    }

    #[inline(always)]
    unsafe fn small_sigma1(self) -> Self {
        let x = self.0;
        // SAFETY: the caller's: AVX2.
        Self(unsafe {
            xor!(
                rotate32!(x, 17),
                rotate32!(x, 19),
                _mm256_srli_epi32::<10>(x)
            )
        })
    }

    #[inline(always)]
    unsafe fn load(granules: &[&Granule; 8], block: usize) -> [Self; 16] {
        let mut words = [Self(rows::<8>(granules, 64 * block)[0]); 16];
        for half in 0..2 {
            let rows = rows(granules, 64 * block + 32 * half);
            // SAFETY: the caller's: AVX2.
            let columns = unsafe { transpose32(rows) };
            for (word, column) in words[8 * half..].iter_mut().zip(columns) {
                *word = Self(column);
            }
        }
        words
    }

    #[inline(always)]
    unsafe fn words(self) -> [u32; 8] {
        // SAFETY: both are 32 bytes without padding, and every pattern is a value.
        unsafe { std::mem::transmute(self.0) }
    }
}

impl Lanes<4> for Wide {
    type Word = u64;

    bitwise!();

    #[inline(always)]
    unsafe fn splat(word: u64) -> Self {
        // SAFETY: the caller's: AVX2.
        Self(unsafe { _mm256_set1_epi64x(word.cast_signed()) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's: AVX2.
        Self(unsafe { _mm256_add_epi64(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn big_sigma0(self) -> Self {
        let x = self.0;
        // SAFETY: the caller's: AVX2.
        Self(unsafe { xor!(rotate64!(x, 28), rotate64!(x, 34), rotate64!(x, 39)) })
    }

    #[inline(always)]
    unsafe fn big_sigma1(self) -> Self {
        let x = self.0;
        // SAFETY: the caller's: AVX2.
        Self(unsafe { xor!(rotate64!(x, 14), rotate64!(x, 18), rotate64!(x, 41)) })
    }

    #[inline(always)]
    unsafe fn small_sigma0(self) -> Self {
        let x = self.0;
        // SAFETY: the caller's: AVX2.
        Self(unsafe { xor!(rotate64!(x, 1), rotate_byte(x), _mm256_srli_epi64::<7>(x)) })
    }

    #[inline(always)]
    unsafe fn small_sigma1(self) -> Self {
        let x = self.0;
        // SAFETY: the caller's: AVX2.
        Self(unsafe {
            xor!(
                rotate64!(x, 19),
                rotate64!(x, 61),
                _mm256_srli_epi64::<6>(x)
            )
        })
    }

    #[inline(always)]
    unsafe fn load(granules: &[&Granule; 4], block: usize) -> [Self; 16] {
        let mut words = [Self(rows::<4>(granules, 128 * block)[0]); 16];
        for quarter in 0..4 {
            let rows = rows(granules, 128 * block + 32 * quarter);
            // SAFETY: the caller's: AVX2.
            let columns = unsafe { transpose64(rows) };
            for (word, column) in words[4 * quarter..].iter_mut().zip(columns) {
                *word = Self(column);
            }
        }
        words
    }

    #[inline(always)]
    unsafe fn words(self) -> [u64; 4] {
        // SAFETY: both are 32 bytes without padding, and every pattern is a value.
        unsafe { std::mem::transmute(self.0) }
    }
}

/// Rotate 64-bit words right by 8: one shuffle instead of two shifts.
#[inline(always)]
unsafe fn rotate_byte(x: __m256i) -> __m256i {
    // SAFETY: the caller's: AVX2.
    unsafe {
        let order = _mm256_setr_epi8(
            1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12, 13, 14, 15, 8, 1, 2, 3, 4, 5, 6, 7, 0, 9, 10,
            11, 12, 13, 14, 15, 8,
        );
        _mm256_shuffle_epi8(x, order)
    }
}

/// 32 bytes of every granule from `offset` on.
#[inline(always)]
fn rows<const N: usize>(granules: &[&Granule; N], offset: usize) -> [__m256i; N] {
    granules.map(|granule| {
        let mut bytes = [0u8; 32];
        bytes.copy_from_slice(&granule[offset..offset + 32]);
        // SAFETY: both are 32 bytes without padding, and every pattern is a value.
        unsafe { std::mem::transmute::<[u8; 32], __m256i>(bytes) }
    })
}

/// From a row of eight big-endian words per granule to a vector per word.
#[inline(always)]
unsafe fn transpose32(rows: [__m256i; 8]) -> [__m256i; 8] {
    // SAFETY: the caller's: AVX2.
    unsafe {
        let order = _mm256_setr_epi8(
            3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10,
            9, 8, 15, 14, 13, 12,
        );
        let r = rows.map(|row| _mm256_shuffle_epi8(row, order));
        let low = quads(r[0], r[1], r[2], r[3]);
        let high = quads(r[4], r[5], r[6], r[7]);
        std::array::from_fn(|word| {
            let (a, b) = (low[word % 4], high[word % 4]);
            if word < 4 {
                _mm256_permute2x128_si256::<0x20>(a, b)
            } else {
                _mm256_permute2x128_si256::<0x31>(a, b)
            }
        })
    }
}

/// Four rows of words, transposed within each half of the vector.
#[inline(always)]
unsafe fn quads(r0: __m256i, r1: __m256i, r2: __m256i, r3: __m256i) -> [__m256i; 4] {
    // SAFETY: the caller's: AVX2.
    unsafe {
        let (t0, t1) = (_mm256_unpacklo_epi32(r0, r1), _mm256_unpackhi_epi32(r0, r1));
        let (t2, t3) = (_mm256_unpacklo_epi32(r2, r3), _mm256_unpackhi_epi32(r2, r3));
        [
            _mm256_unpacklo_epi64(t0, t2),
            _mm256_unpackhi_epi64(t0, t2),
            _mm256_unpacklo_epi64(t1, t3),
            _mm256_unpackhi_epi64(t1, t3),
        ]
    }
}

/// From a row of four big-endian words per granule to a vector per word.
#[inline(always)]
unsafe fn transpose64(rows: [__m256i; 4]) -> [__m256i; 4] {
    // SAFETY: the caller's: AVX2.
    unsafe {
        let order = _mm256_setr_epi8(
            7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 15, 14,
            13, 12, 11, 10, 9, 8,
        );
        let r = rows.map(|row| _mm256_shuffle_epi8(row, order));
        let (even0, odd0) = (
            _mm256_unpacklo_epi64(r[0], r[1]),
            _mm256_unpackhi_epi64(r[0], r[1]),
        );
        let (even1, odd1) = (
            _mm256_unpacklo_epi64(r[2], r[3]),
            _mm256_unpackhi_epi64(r[2], r[3]),
        );
        [
            _mm256_permute2x128_si256::<0x20>(even0, even1),
            _mm256_permute2x128_si256::<0x20>(odd0, odd1),
            _mm256_permute2x128_si256::<0x31>(even0, even1),
            _mm256_permute2x128_si256::<0x31>(odd0, odd1),
        ]
    }
}

#[target_feature(enable = "avx2")]
unsafe fn sha256_group(granules: [&Granule; 8]) -> [Field; 8] {
    // SAFETY: AVX2 is enabled here.
    unsafe { lanes::digest::<Narrow, 8>(granules) }
}

#[target_feature(enable = "avx2")]
unsafe fn sha512_group(granules: [&Granule; 4]) -> [Field; 4] {
    // SAFETY: AVX2 is enabled here.
    unsafe { lanes::digest::<Wide, 4>(granules) }
}

/// # Safety
/// The processor has AVX2.
pub(crate) unsafe fn sha256(granules: &[Granule], digests: &mut [Field]) {
    // SAFETY: the caller's.
    each_group(granules, digests, |group| unsafe { sha256_group(group) });
}

/// # Safety
/// The processor has AVX2.
pub(crate) unsafe fn sha512(granules: &[Granule], digests: &mut [Field]) {
    // SAFETY: the caller's.
    each_group(granules, digests, |group| unsafe { sha512_group(group) });
}
