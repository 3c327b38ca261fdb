//! SHA extensions of x86: three SHA-256 streams interleaved in one thread.
//!
//! `sha256rnds2` has a latency of four cycles and starts every two: one message alone leaves the unit idle
//! half of the time.

use std::arch::x86_64::*;

use crate::constants::{SHA256_INITIAL, SHA256_PADDING, SHA256_ROUNDS};
use crate::unroll::sixteen;
use crate::{each_group, Field, Granule, FIELD_SIZE, GRANULE_SIZE};

/// Enough to hide the latency, few enough for sixteen registers.
pub(crate) const STREAMS: usize = 3;
const BLOCK: usize = 64;

/// The state as the instructions want it: A, B, E, F and C, D, G, H.
#[derive(Clone, Copy)]
struct State {
    abef: __m128i,
    cdgh: __m128i,
}

#[target_feature(enable = "sha,sse4.1")]
fn vector(words: [u32; 4]) -> __m128i {
    let [a, b, c, d] = words.map(u32::cast_signed);
    _mm_setr_epi32(a, b, c, d)
}

#[target_feature(enable = "sha,sse4.1")]
fn initial() -> State {
    let [a, b, c, d, e, f, g, h] = SHA256_INITIAL;
    State {
        abef: vector([f, e, b, a]),
        cdgh: vector([h, g, d, c]),
    }
}

/// Four rounds of every stream.
#[inline]
#[target_feature(enable = "sha,sse4.1")]
fn rounds<const N: usize>(states: &mut [State; N], scheduled: [__m128i; N]) {
    for (state, scheduled) in states.iter_mut().zip(scheduled) {
        state.cdgh = _mm_sha256rnds2_epu32(state.cdgh, state.abef, scheduled);
    }
    for (state, scheduled) in states.iter_mut().zip(scheduled) {
        let upper = _mm_shuffle_epi32::<0x0e>(scheduled);
        state.abef = _mm_sha256rnds2_epu32(state.abef, state.cdgh, upper);
    }
}

/// The next four words of the schedule from the last sixteen, oldest first.
#[inline]
#[target_feature(enable = "sha,sse4.1")]
fn schedule(w0: __m128i, w1: __m128i, w2: __m128i, w3: __m128i) -> __m128i {
    let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8::<4>(w3, w2));
    _mm_sha256msg2_epu32(sum, w3)
}

#[inline]
#[target_feature(enable = "sha,sse4.1")]
fn constants(table: &[u32; 64], group: usize) -> __m128i {
    let mut four = [0; 4];
    four.copy_from_slice(&table[4 * group..4 * group + 4]);
    vector(four)
}

/// Four words of the block at `offset`.
#[inline]
#[target_feature(enable = "sha,sse4.1")]
fn load(granule: &Granule, offset: usize) -> __m128i {
    let order = _mm_setr_epi8(3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12);
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&granule[offset..offset + 16]);
    // SAFETY: both are 16 bytes without padding, and every pattern is a value.
    let words = unsafe { std::mem::transmute::<[u8; 16], __m128i>(bytes) };
    _mm_shuffle_epi8(words, order)
}

#[inline]
#[target_feature(enable = "sha,sse4.1")]
fn sum<const N: usize>(states: &mut [State; N], others: [State; N]) {
    for (state, other) in states.iter_mut().zip(others) {
        state.abef = _mm_add_epi32(state.abef, other.abef);
        state.cdgh = _mm_add_epi32(state.cdgh, other.cdgh);
    }
}

#[inline]
#[target_feature(enable = "sha,sse4.1")]
fn compress<const N: usize>(states: &mut [State; N], granules: &[&Granule; N], block: usize) {
    let before = *states;
    let zero = _mm_setzero_si128();
    let mut w = [[zero; 4]; N];
    sixteen!(G => {
        let k = constants(&SHA256_ROUNDS, G);
        let mut scheduled = [zero; N];
        for stream in 0..N {
            let w = &mut w[stream];
            w[G % 4] = if G < 4 {
                load(granules[stream], BLOCK * block + 16 * G)
            } else {
                schedule(w[G % 4], w[(G + 1) % 4], w[(G + 2) % 4], w[(G + 3) % 4])
            };
            scheduled[stream] = _mm_add_epi32(w[G % 4], k);
        }
        rounds(states, scheduled);
    });
    sum(states, before);
}

#[target_feature(enable = "sha,sse4.1")]
fn group<const N: usize>(granules: [&Granule; N]) -> [Field; N] {
    let mut states = [initial(); N];
    for block in 0..GRANULE_SIZE / BLOCK {
        compress(&mut states, &granules, block);
    }
    let before = states;
    sixteen!(G => {
        rounds(&mut states, [constants(&SHA256_PADDING, G); N]);
    });
    sum(&mut states, before);
    states.map(|state| field(state))
}

/// The digest at the start of a field of zeroes.
#[target_feature(enable = "sha,sse4.1")]
fn field(state: State) -> Field {
    // SAFETY: both are 16 bytes without padding, and every pattern is a value.
    let [[f, e, b, a], [h, g, d, c]] = [state.abef, state.cdgh]
        .map(|half| unsafe { std::mem::transmute::<__m128i, [u32; 4]>(half) });
    let mut field = [0; FIELD_SIZE];
    for (bytes, word) in field.chunks_exact_mut(4).zip([a, b, c, d, e, f, g, h]) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    field
}

/// # Safety
/// The processor has the SHA extensions, SSSE3 and SSE4.1.
pub(crate) unsafe fn sha256(granules: &[Granule], digests: &mut [Field]) {
    // SAFETY: the caller's.
    each_group(granules, digests, |granules| unsafe {
        group::<STREAMS>(granules)
    });
}
