//! SHA2 and SHA512 extensions of Armv8: interleaved streams, so that one waits while another one works.

use std::arch::aarch64::*;

use crate::constants::{
    SHA256_INITIAL, SHA256_PADDING, SHA256_ROUNDS, SHA512_INITIAL, SHA512_PADDING, SHA512_ROUNDS,
};
use crate::unroll::{eight, sixteen};
use crate::{each_group, Field, Granule, FIELD_SIZE, GRANULE_SIZE};

/// Three of eight registers each fit into the 32 of the machine.
const SHA256_STREAMS: usize = 3;
/// Of SHA-512 a stream has sixteen.
const SHA512_STREAMS: usize = 2;

/// A, B, C, D and E, F, G, H.
type Narrow = [uint32x4_t; 2];
/// A, B; C, D; E, F; G, H.
type Wide = [uint64x2_t; 4];

#[inline]
#[target_feature(enable = "sha2")]
fn narrow(words: &[u32], index: usize) -> uint32x4_t {
    let mut four = [0; 4];
    four.copy_from_slice(&words[4 * index..4 * index + 4]);
    // SAFETY: the array has the 16 bytes that are read.
    unsafe { vld1q_u32(four.as_ptr()) }
}

#[inline]
#[target_feature(enable = "sha3")]
fn wide(words: &[u64], index: usize) -> uint64x2_t {
    let mut two = [0; 2];
    two.copy_from_slice(&words[2 * index..2 * index + 2]);
    // SAFETY: the array has the 16 bytes that are read.
    unsafe { vld1q_u64(two.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn bytes(granule: &Granule, offset: usize) -> uint8x16_t {
    let mut sixteen = [0; 16];
    sixteen.copy_from_slice(&granule[offset..offset + 16]);
    // SAFETY: the array has the 16 bytes that are read.
    unsafe { vld1q_u8(sixteen.as_ptr()) }
}

/// Four rounds.
#[inline]
#[target_feature(enable = "sha2")]
fn narrow_rounds([abcd, efgh]: Narrow, scheduled: uint32x4_t) -> Narrow {
    [
        vsha256hq_u32(abcd, efgh, scheduled),
        vsha256h2q_u32(efgh, abcd, scheduled),
    ]
}

#[inline]
#[target_feature(enable = "sha2")]
fn narrow_compress<const N: usize>(
    states: &mut [Narrow; N],
    granules: &[&Granule; N],
    block: usize,
) {
    let before = *states;
    let mut w = [[vdupq_n_u32(0); 4]; N];
    sixteen!(G => {
        let k = narrow(&SHA256_ROUNDS, G);
        for stream in 0..N {
            let w = &mut w[stream];
            w[G % 4] = if G < 4 {
                let offset = 64 * block + 16 * G;
                vreinterpretq_u32_u8(vrev32q_u8(bytes(granules[stream], offset)))
            } else {
                let half = vsha256su0q_u32(w[G % 4], w[(G + 1) % 4]);
                vsha256su1q_u32(half, w[(G + 2) % 4], w[(G + 3) % 4])
            };
            states[stream] = narrow_rounds(states[stream], vaddq_u32(w[G % 4], k));
        }
    });
    narrow_sum(states, before);
}

#[inline]
#[target_feature(enable = "sha2")]
fn narrow_sum<const N: usize>(states: &mut [Narrow; N], before: [Narrow; N]) {
    for (state, before) in states.iter_mut().zip(before) {
        *state = [
            vaddq_u32(state[0], before[0]),
            vaddq_u32(state[1], before[1]),
        ];
    }
}

#[target_feature(enable = "sha2")]
fn narrow_group<const N: usize>(granules: [&Granule; N]) -> [Field; N] {
    let mut states = [[narrow(&SHA256_INITIAL, 0), narrow(&SHA256_INITIAL, 1)]; N];
    for block in 0..GRANULE_SIZE / 64 {
        narrow_compress(&mut states, &granules, block);
    }
    let before = states;
    for group in 0..16 {
        for state in &mut states {
            *state = narrow_rounds(*state, narrow(&SHA256_PADDING, group));
        }
    }
    narrow_sum(&mut states, before);
    let mut fields = [[0; FIELD_SIZE]; N];
    for (field, state) in fields.iter_mut().zip(states) {
        for (target, words) in field.chunks_exact_mut(16).zip(state) {
            // SAFETY: the chunk has the 16 bytes that are written.
            unsafe { vst1q_u8(target.as_mut_ptr(), vrev32q_u8(vreinterpretq_u8_u32(words))) };
        }
    }
    fields
}

/// Two rounds.
#[inline]
#[target_feature(enable = "sha3")]
fn wide_rounds([ab, cd, ef, gh]: Wide, scheduled: uint64x2_t) -> Wide {
    let sum = vaddq_u64(vextq_u64::<1>(scheduled, scheduled), gh);
    let fg = vextq_u64::<1>(ef, gh);
    let de = vextq_u64::<1>(cd, ef);
    let middle = vsha512hq_u64(sum, fg, de);
    [
        vsha512h2q_u64(middle, cd, ab),
        ab,
        vaddq_u64(cd, middle),
        ef,
    ]
}

#[inline]
#[target_feature(enable = "sha3")]
fn wide_compress<const N: usize>(states: &mut [Wide; N], granules: &[&Granule; N], block: usize) {
    let before = *states;
    let mut w = [[vdupq_n_u64(0); 8]; N];
    eight!(P => {
        let k = wide(&SHA512_ROUNDS, P);
        for stream in 0..N {
            let next = bytes(granules[stream], 128 * block + 16 * P);
            w[stream][P] = vreinterpretq_u64_u8(vrev64q_u8(next));
            states[stream] = wide_rounds(states[stream], vaddq_u64(w[stream][P], k));
        }
    });
    for pairs in (8..40).step_by(8) {
        eight!(P => {
            let k = wide(&SHA512_ROUNDS, pairs + P);
            for stream in 0..N {
                let w = &mut w[stream];
                let half = vsha512su0q_u64(w[P], w[(P + 1) % 8]);
                let middle = vextq_u64::<1>(w[(P + 4) % 8], w[(P + 5) % 8]);
                w[P] = vsha512su1q_u64(half, w[(P + 7) % 8], middle);
                states[stream] = wide_rounds(states[stream], vaddq_u64(w[P], k));
            }
        });
    }
    wide_sum(states, before);
}

#[inline]
#[target_feature(enable = "sha3")]
fn wide_sum<const N: usize>(states: &mut [Wide; N], before: [Wide; N]) {
    for (state, before) in states.iter_mut().zip(before) {
        for (words, before) in state.iter_mut().zip(before) {
            *words = vaddq_u64(*words, before);
        }
    }
}

#[target_feature(enable = "sha3")]
fn wide_group<const N: usize>(granules: [&Granule; N]) -> [Field; N] {
    let mut initial = [vdupq_n_u64(0); 4];
    for (index, words) in initial.iter_mut().enumerate() {
        *words = wide(&SHA512_INITIAL, index);
    }
    let mut states = [initial; N];
    for block in 0..GRANULE_SIZE / 128 {
        wide_compress(&mut states, &granules, block);
    }
    let before = states;
    for pair in 0..40 {
        for state in &mut states {
            *state = wide_rounds(*state, wide(&SHA512_PADDING, pair));
        }
    }
    wide_sum(&mut states, before);
    let mut fields = [[0; FIELD_SIZE]; N];
    for (field, state) in fields.iter_mut().zip(states) {
        for (target, words) in field.chunks_exact_mut(16).zip(state) {
            // SAFETY: the chunk has the 16 bytes that are written.
            unsafe { vst1q_u8(target.as_mut_ptr(), vrev64q_u8(vreinterpretq_u8_u64(words))) };
        }
    }
    fields
}

/// # Safety
/// The processor has the SHA2 extension.
pub(crate) unsafe fn sha256(granules: &[Granule], digests: &mut [Field]) {
    // SAFETY: the caller's.
    each_group(granules, digests, |granules| unsafe {
        narrow_group::<SHA256_STREAMS>(granules)
    });
}

/// # Safety
/// The processor has the SHA512 extension (which Rust counts to SHA3).
pub(crate) unsafe fn sha512(granules: &[Granule], digests: &mut [Field]) {
    // SAFETY: the caller's.
    each_group(granules, digests, |granules| unsafe {
        wide_group::<SHA512_STREAMS>(granules)
    });
}
