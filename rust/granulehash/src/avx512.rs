//! AVX-512: sixteen lanes of SHA-256, eight of SHA-512, with rotations and three-operand logic in one instruction.

use std::arch::x86_64::*;

use crate::lanes::{self, Lanes};
use crate::{each_group, Field, Granule};

/// Truth tables of `vpternlog`: bit `4a + 2b + c` is the value for the operands a, b, c.
const XOR: i32 = 0x96;
const CHOOSE: i32 = 0xca;
const MAJORITY: i32 = 0xe8;

/// Sixteen 32-bit words.
#[derive(Clone, Copy)]
struct Narrow(__m512i);

/// Eight 64-bit words.
#[derive(Clone, Copy)]
struct Wide(__m512i);

macro_rules! xor {
    ($a:expr, $b:expr, $c:expr) => {
        _mm512_ternarylogic_epi32::<XOR>($a, $b, $c)
    };
}

/// What does not depend on the width of a word.
macro_rules! bitwise {
    () => {
        #[inline(always)]
        unsafe fn choose(self, f: Self, g: Self) -> Self {
            // SAFETY: the caller's: AVX-512F.
            Self(unsafe { _mm512_ternarylogic_epi32::<CHOOSE>(self.0, f.0, g.0) })
        }

        #[inline(always)]
        unsafe fn majority(self, b: Self, c: Self) -> Self {
            // SAFETY: the caller's: AVX-512F.
            Self(unsafe { _mm512_ternarylogic_epi32::<MAJORITY>(self.0, b.0, c.0) })
        }
    };
}

macro_rules! rotate32 {
    ($x:expr, $r:literal) => {
        _mm512_ror_epi32::<$r>($x)
    };
}

macro_rules! rotate64 {
    ($x:expr, $r:literal) => {
        _mm512_ror_epi64::<$r>($x)
    };
}

impl Lanes<16> for Narrow {
    type Word = u32;

    bitwise!();

    #[inline(always)]
    unsafe fn splat(word: u32) -> Self {
        // SAFETY: the caller's: AVX-512F.
        Self(unsafe { _mm512_set1_epi32(word.cast_signed()) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's: AVX-512F.
        Self(unsafe { _mm512_add_epi32(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn big_sigma0(self) -> Self {
        let x = self.0;
        // SAFETY: the caller's: AVX-512F.
        Self(unsafe { xor!(rotate32!(x, 2), rotate32!(x, 13), rotate32!(x, 22)) })
    }

    #[inline(always)]
    unsafe fn big_sigma1(self) -> Self {
        let x = self.0;
        // SAFETY: the caller's: AVX-512F.
        Self(unsafe { xor!(rotate32!(x, 6), rotate32!(x, 11), rotate32!(x, 25)) })
    }

    #[inline(always)]
    unsafe fn small_sigma0(self) -> Self {
        let x = self.0;
        // SAFETY: the caller's: AVX-512F.
        Self(unsafe { xor!(rotate32!(x, 7), rotate32!(x, 18), _mm512_srli_epi32::<3>(x)) })
    }

    #[inline(always)]
    unsafe fn small_sigma1(self) -> Self {
        let x = self.0;
        // SAFETY: the caller's: AVX-512F.
        Self(unsafe {
            xor!(
                rotate32!(x, 17),
                rotate32!(x, 19),
                _mm512_srli_epi32::<10>(x)
            )
        })
    }

    #[inline(always)]
    unsafe fn load(granules: &[&Granule; 16], block: usize) -> [Self; 16] {
        let rows = rows(granules, 64 * block);
        // SAFETY: the caller's: AVX-512F and AVX-512BW.
        unsafe { transpose32(rows) }.map(Self)
    }

    #[inline(always)]
    unsafe fn words(self) -> [u32; 16] {
        // SAFETY: both are 64 bytes without padding, and every pattern is a value.
        unsafe { std::mem::transmute(self.0) }
    }
}

impl Lanes<8> for Wide {
    type Word = u64;

    bitwise!();

    #[inline(always)]
    unsafe fn splat(word: u64) -> Self {
        // SAFETY: the caller's: AVX-512F.
        Self(unsafe { _mm512_set1_epi64(word.cast_signed()) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's: AVX-512F.
        Self(unsafe { _mm512_add_epi64(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn big_sigma0(self) -> Self {
        let x = self.0;
        // SAFETY: the caller's: AVX-512F.
        Self(unsafe { xor!(rotate64!(x, 28), rotate64!(x, 34), rotate64!(x, 39)) })
    }

    #[inline(always)]
    unsafe fn big_sigma1(self) -> Self {
        let x = self.0;
        // SAFETY: the caller's: AVX-512F.
        Self(unsafe { xor!(rotate64!(x, 14), rotate64!(x, 18), rotate64!(x, 41)) })
    }

    #[inline(always)]
    unsafe fn small_sigma0(self) -> Self {
        let x = self.0;
        // SAFETY: the caller's: AVX-512F.
        Self(unsafe { xor!(rotate64!(x, 1), rotate64!(x, 8), _mm512_srli_epi64::<7>(x)) })
    }

    #[inline(always)]
    unsafe fn small_sigma1(self) -> Self {
        let x = self.0;
        // SAFETY: the caller's: AVX-512F.
        Self(unsafe {
            xor!(
                rotate64!(x, 19),
                rotate64!(x, 61),
                _mm512_srli_epi64::<6>(x)
            )
        })
    }

    #[inline(always)]
    unsafe fn load(granules: &[&Granule; 8], block: usize) -> [Self; 16] {
        // SAFETY: the caller's: AVX-512F and AVX-512BW.
        let (first, second) = unsafe {
            (
                transpose64(rows(granules, 128 * block)),
                transpose64(rows(granules, 128 * block + 64)),
            )
        };
        std::array::from_fn(|word| {
            Self(if word < 8 {
                first[word]
            } else {
                second[word - 8]
            })
        })
    }

    #[inline(always)]
    unsafe fn words(self) -> [u64; 8] {
        // SAFETY: both are 64 bytes without padding, and every pattern is a value.
        unsafe { std::mem::transmute(self.0) }
    }
}

/// 64 bytes of every granule from `offset` on: a whole cache line, because granules that follow one another
/// share a cache set.
#[inline(always)]
fn rows<const N: usize>(granules: &[&Granule; N], offset: usize) -> [__m512i; N] {
    granules.map(|granule| {
        let mut bytes = [0u8; 64];
        bytes.copy_from_slice(&granule[offset..offset + 64]);
        // SAFETY: both are 64 bytes without padding, and every pattern is a value.
        unsafe { std::mem::transmute::<[u8; 64], __m512i>(bytes) }
    })
}

/// From a row of sixteen big-endian words per granule to a vector per word.
#[inline(always)]
unsafe fn transpose32(rows: [__m512i; 16]) -> [__m512i; 16] {
    // SAFETY: the caller's: AVX-512F and AVX-512BW.
    unsafe {
        let order = _mm512_broadcast_i32x4(_mm_setr_epi8(
            3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12,
        ));
        let r = rows.map(|row| _mm512_shuffle_epi8(row, order));
        let quads: [[__m512i; 4]; 4] =
            std::array::from_fn(|k| quads(r[4 * k], r[4 * k + 1], r[4 * k + 2], r[4 * k + 3]));
        let columns: [[__m512i; 4]; 4] = std::array::from_fn(|word| {
            quarters([
                quads[0][word],
                quads[1][word],
                quads[2][word],
                quads[3][word],
            ])
        });
        std::array::from_fn(|word| columns[word % 4][word / 4])
    }
}

/// Four rows of words, transposed within each quarter of the vector.
#[inline(always)]
unsafe fn quads(r0: __m512i, r1: __m512i, r2: __m512i, r3: __m512i) -> [__m512i; 4] {
    // SAFETY: the caller's: AVX-512F.
    unsafe {
        let (t0, t1) = (_mm512_unpacklo_epi32(r0, r1), _mm512_unpackhi_epi32(r0, r1));
        let (t2, t3) = (_mm512_unpacklo_epi32(r2, r3), _mm512_unpackhi_epi32(r2, r3));
        [
            _mm512_unpacklo_epi64(t0, t2),
            _mm512_unpackhi_epi64(t0, t2),
            _mm512_unpacklo_epi64(t1, t3),
            _mm512_unpackhi_epi64(t1, t3),
        ]
    }
}

/// From a row of eight big-endian words per granule to a vector per word.
#[inline(always)]
unsafe fn transpose64(rows: [__m512i; 8]) -> [__m512i; 8] {
    // SAFETY: the caller's: AVX-512F and AVX-512BW.
    unsafe {
        let order = _mm512_broadcast_i32x4(_mm_setr_epi8(
            7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8,
        ));
        let r = rows.map(|row| _mm512_shuffle_epi8(row, order));
        let even = std::array::from_fn(|k| _mm512_unpacklo_epi64(r[2 * k], r[2 * k + 1]));
        let odd = std::array::from_fn(|k| _mm512_unpackhi_epi64(r[2 * k], r[2 * k + 1]));
        let columns = [quarters(even), quarters(odd)];
        std::array::from_fn(|word| columns[word % 2][word / 2])
    }
}

/// The 4 x 4 quarters of four vectors, transposed.
#[inline(always)]
unsafe fn quarters(u: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: the caller's: AVX-512F.
    unsafe {
        let even0 = _mm512_shuffle_i32x4::<0x88>(u[0], u[1]);
        let odd0 = _mm512_shuffle_i32x4::<0xdd>(u[0], u[1]);
        let even1 = _mm512_shuffle_i32x4::<0x88>(u[2], u[3]);
        let odd1 = _mm512_shuffle_i32x4::<0xdd>(u[2], u[3]);
        [
            _mm512_shuffle_i32x4::<0x88>(even0, even1),
            _mm512_shuffle_i32x4::<0x88>(odd0, odd1),
            _mm512_shuffle_i32x4::<0xdd>(even0, even1),
            _mm512_shuffle_i32x4::<0xdd>(odd0, odd1),
        ]
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn sha256_group(granules: [&Granule; 16]) -> [Field; 16] {
    // SAFETY: the features are enabled here.
    unsafe { lanes::digest::<Narrow, 16>(granules) }
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn sha512_group(granules: [&Granule; 8]) -> [Field; 8] {
    // SAFETY: the features are enabled here.
    unsafe { lanes::digest::<Wide, 8>(granules) }
}

/// # Safety
/// The processor has AVX-512F and AVX-512BW.
pub(crate) unsafe fn sha256(granules: &[Granule], digests: &mut [Field]) {
    // SAFETY: the caller's.
    each_group(granules, digests, |group| unsafe { sha256_group(group) });
}

/// # Safety
/// The processor has AVX-512F and AVX-512BW.
pub(crate) unsafe fn sha512(granules: &[Granule], digests: &mut [Field]) {
    // SAFETY: the caller's.
    each_group(granules, digests, |group| unsafe { sha512_group(group) });
}
