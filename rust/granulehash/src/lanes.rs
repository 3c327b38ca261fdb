//! The compression functions over vectors: one granule per lane, all lanes in step.
//!
//! The code is the same for every vector type; what a type has to know of itself is [`Lanes`].
//! Everything is inlined into an entry function that enables the processor features.
//!
//! Source: NIST FIPS 180-4, 6.2.2 (SHA-256) and 6.4.2 (SHA-512).

use crate::constants::{
    SHA256_INITIAL, SHA256_PADDING, SHA256_ROUNDS, SHA512_INITIAL, SHA512_PADDING, SHA512_ROUNDS,
};
use crate::unroll::sixteen;
use crate::{Field, Granule, FIELD_SIZE, GRANULE_SIZE};

/// The words of one of the two functions.
pub(crate) trait Word: Copy + 'static {
    /// Bytes.
    const SIZE: usize;
    /// The state before the first block.
    const INITIAL: [Self; 8];
    /// The round constants.
    const ROUNDS: &'static [Self];
    /// The schedule of the padding block, round constants added.
    const PADDING: &'static [Self];
    /// Store as big endian at the start of `target`.
    fn store(self, target: &mut [u8]);
}

impl Word for u32 {
    const SIZE: usize = 4;
    const INITIAL: [Self; 8] = SHA256_INITIAL;
    const ROUNDS: &'static [Self] = &SHA256_ROUNDS;
    const PADDING: &'static [Self] = &SHA256_PADDING;

    fn store(self, target: &mut [u8]) {
        target[..4].copy_from_slice(&self.to_be_bytes());
    }
}

impl Word for u64 {
    const SIZE: usize = 8;
    const INITIAL: [Self; 8] = SHA512_INITIAL;
    const ROUNDS: &'static [Self] = &SHA512_ROUNDS;
    const PADDING: &'static [Self] = &SHA512_PADDING;

    fn store(self, target: &mut [u8]) {
        target[..8].copy_from_slice(&self.to_be_bytes());
    }
}

/// A vector with one word of each of `N` messages.
///
/// # Safety
/// All functions have one condition: the processor has the features that the type is made for.
pub(crate) trait Lanes<const N: usize>: Copy {
    /// Its words.
    type Word: Word;

    /// The same word everywhere.
    unsafe fn splat(word: Self::Word) -> Self;
    /// Sum, modulo the word.
    unsafe fn add(self, other: Self) -> Self;
    /// Ch(self, f, g).
    unsafe fn choose(self, f: Self, g: Self) -> Self;
    /// Maj(self, b, c).
    unsafe fn majority(self, b: Self, c: Self) -> Self;
    /// Σ0.
    unsafe fn big_sigma0(self) -> Self;
    /// Σ1.
    unsafe fn big_sigma1(self) -> Self;
    /// σ0.
    unsafe fn small_sigma0(self) -> Self;
    /// σ1.
    unsafe fn small_sigma1(self) -> Self;
    /// The 16 words of the block that begins at byte `16 * SIZE * block` of every granule.
    unsafe fn load(granules: &[&Granule; N], block: usize) -> [Self; 16];
    /// The words.
    unsafe fn words(self) -> [Self::Word; N];
}

/// One round; the caller has added the round constant to the word of the schedule.
#[inline(always)]
unsafe fn round<V: Lanes<N>, const N: usize>(state: [V; 8], scheduled: V) -> [V; 8] {
    let [a, b, c, d, e, f, g, h] = state;
    // SAFETY: the caller's.
    unsafe {
        let t1 = h.add(scheduled).add(e.choose(f, g)).add(e.big_sigma1());
        let t2 = a.majority(b, c).add(a.big_sigma0());
        [t1.add(t2), a, b, c, d.add(t1), e, f, g]
    }
}

#[inline(always)]
unsafe fn compress<V: Lanes<N>, const N: usize>(state: [V; 8], mut w: [V; 16]) -> [V; 8] {
    let (first, rest) = V::Word::ROUNDS.split_at(16);
    let mut s = state;
    // SAFETY: the caller's.
    unsafe {
        sixteen!(T => {
            s = round(s, w[T].add(V::splat(first[T])));
        });
        for constants in rest.chunks_exact(16) {
            sixteen!(T => {
                w[T] = w[T]
                    .add(w[(T + 1) % 16].small_sigma0())
                    .add(w[(T + 9) % 16])
                    .add(w[(T + 14) % 16].small_sigma1());
                s = round(s, w[T].add(V::splat(constants[T])));
            });
        }
        sum(state, s)
    }
}

/// The padding block: its schedule is known beforehand.
#[inline(always)]
unsafe fn finish<V: Lanes<N>, const N: usize>(state: [V; 8]) -> [V; 8] {
    let mut s = state;
    // SAFETY: the caller's.
    unsafe {
        for scheduled in V::Word::PADDING.chunks_exact(16) {
            sixteen!(T => {
                s = round(s, V::splat(scheduled[T]));
            });
        }
        sum(state, s)
    }
}

#[inline(always)]
unsafe fn sum<V: Lanes<N>, const N: usize>(mut state: [V; 8], other: [V; 8]) -> [V; 8] {
    for (word, other) in state.iter_mut().zip(other) {
        // SAFETY: the caller's.
        *word = unsafe { word.add(other) };
    }
    state
}

/// The digests of `N` granules.
///
/// # Safety
/// The processor has the features that `V` is made for.
#[inline(always)]
pub(crate) unsafe fn digest<V: Lanes<N>, const N: usize>(granules: [&Granule; N]) -> [Field; N] {
    // SAFETY: the caller's.
    let state = unsafe {
        let mut state = V::Word::INITIAL.map(|word| V::splat(word));
        for block in 0..GRANULE_SIZE / (16 * V::Word::SIZE) {
            state = compress(state, V::load(&granules, block));
        }
        finish(state)
    };
    let mut digests = [[0; FIELD_SIZE]; N];
    for (index, words) in state.into_iter().enumerate() {
        // SAFETY: the caller's.
        let words = unsafe { words.words() };
        for (digest, word) in digests.iter_mut().zip(words) {
            word.store(&mut digest[index * V::Word::SIZE..]);
        }
    }
    digests
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{expected, granules};
    use crate::Algorithm;

    /// Lanes in an array: the shape of the widest vectors, on any processor.
    macro_rules! array_lanes {
        ($name:ident, $word:ty, $s0:expr, $s1:expr, $t0:expr, $t1:expr) => {
            #[derive(Clone, Copy)]
            struct $name<const N: usize>([$word; N]);

            impl<const N: usize> Lanes<N> for $name<N> {
                type Word = $word;

                unsafe fn splat(word: $word) -> Self {
                    Self([word; N])
                }
                unsafe fn add(self, other: Self) -> Self {
                    Self(std::array::from_fn(|i| self.0[i].wrapping_add(other.0[i])))
                }
                unsafe fn choose(self, f: Self, g: Self) -> Self {
                    Self(std::array::from_fn(|i| {
                        (self.0[i] & f.0[i]) ^ (!self.0[i] & g.0[i])
                    }))
                }
                unsafe fn majority(self, b: Self, c: Self) -> Self {
                    Self(std::array::from_fn(|i| {
                        (self.0[i] & b.0[i]) ^ (self.0[i] & c.0[i]) ^ (b.0[i] & c.0[i])
                    }))
                }
                unsafe fn big_sigma0(self) -> Self {
                    Self(self.0.map($s0))
                }
                unsafe fn big_sigma1(self) -> Self {
                    Self(self.0.map($s1))
                }
                unsafe fn small_sigma0(self) -> Self {
                    Self(self.0.map($t0))
                }
                unsafe fn small_sigma1(self) -> Self {
                    Self(self.0.map($t1))
                }
                unsafe fn load(granules: &[&Granule; N], block: usize) -> [Self; 16] {
                    const SIZE: usize = <$word as Word>::SIZE;
                    std::array::from_fn(|t| {
                        let offset = (16 * block + t) * SIZE;
                        Self(granules.map(|granule| {
                            <$word>::from_be_bytes(
                                granule[offset..offset + SIZE].try_into().unwrap(),
                            )
                        }))
                    })
                }
                unsafe fn words(self) -> [$word; N] {
                    self.0
                }
            }
        };
    }

    array_lanes!(
        Narrow,
        u32,
        |x| x.rotate_right(2) ^ x.rotate_right(13) ^ x.rotate_right(22),
        |x| x.rotate_right(6) ^ x.rotate_right(11) ^ x.rotate_right(25),
        |x| x.rotate_right(7) ^ x.rotate_right(18) ^ (x >> 3),
        |x| x.rotate_right(17) ^ x.rotate_right(19) ^ (x >> 10)
    );
    array_lanes!(
        Wide,
        u64,
        |x| x.rotate_right(28) ^ x.rotate_right(34) ^ x.rotate_right(39),
        |x| x.rotate_right(14) ^ x.rotate_right(18) ^ x.rotate_right(41),
        |x| x.rotate_right(1) ^ x.rotate_right(8) ^ (x >> 7),
        |x| x.rotate_right(19) ^ x.rotate_right(61) ^ (x >> 6)
    );

    #[test]
    fn the_rounds_are_right_whatever_the_vector() {
        let content = granules(1, 16);
        let all: [&Granule; 16] = std::array::from_fn(|i| &content[i]);
        let eight: [&Granule; 8] = std::array::from_fn(|i| &content[i]);
        // SAFETY: arrays need no feature.
        let (narrow, wide) =
            unsafe { (digest::<Narrow<16>, 16>(all), digest::<Wide<8>, 8>(eight)) };
        assert_eq!(narrow.to_vec(), expected(Algorithm::Sha256, &content));
        assert_eq!(wide.to_vec(), expected(Algorithm::Sha512, &content[..8]));
    }
}
