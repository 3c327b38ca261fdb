//! CBC and XTS over one crypto sector, for any 128-bit block cipher.

use cipher::consts::U16;
use cipher::generic_array::GenericArray;
use cipher::{BlockCipher, BlockDecrypt, BlockEncrypt, BlockSizeUser, KeyInit};

pub(crate) type Block = GenericArray<u8, U16>;

/// Blocks handed to the cipher at once: enough to fill the pipelines of AES instructions.
const BATCH: usize = 32;

/// A keyed block cipher in a mode of operation.
pub(crate) trait Engine: Send + Sync {
    /// Encrypt one crypto sector in place; its length is a multiple of 16.
    fn encrypt(&self, iv: [u8; 16], sector: &mut [u8]);
    /// Decrypt one crypto sector in place.
    fn decrypt(&self, iv: [u8; 16], sector: &mut [u8]);
}

/// What the modes need of a block cipher.
pub(crate) trait Cipher:
    BlockCipher + BlockEncrypt + BlockDecrypt + BlockSizeUser<BlockSize = U16>
{
}
impl<T: BlockCipher + BlockEncrypt + BlockDecrypt + BlockSizeUser<BlockSize = U16>> Cipher for T {}

pub(crate) struct Cbc<C>(pub(crate) C);

pub(crate) struct Xts<C> {
    pub(crate) data: C,
    pub(crate) tweak: C,
}

impl<C: Cipher + KeyInit> Xts<C> {
    /// `key` holds two halves of a size that `C` accepts.
    pub(crate) fn new(key: &[u8]) -> Option<Self> {
        let (data, tweak) = key.split_at(key.len() / 2);
        Some(Self {
            data: C::new_from_slice(data).ok()?,
            tweak: C::new_from_slice(tweak).ok()?,
        })
    }
}

fn xor(block: &mut [u8], mask: &[u8]) {
    for (byte, other) in block.iter_mut().zip(mask) {
        *byte ^= other;
    }
}

impl<C: Cipher + Send + Sync> Engine for Cbc<C> {
    fn encrypt(&self, iv: [u8; 16], sector: &mut [u8]) {
        let mut previous = iv;
        for block in sector.chunks_exact_mut(16) {
            xor(block, &previous);
            self.0.encrypt_block(Block::from_mut_slice(block));
            previous.copy_from_slice(block);
        }
    }

    fn decrypt(&self, iv: [u8; 16], sector: &mut [u8]) {
        let mut previous = iv;
        let mut ciphertext = [0u8; 16 * BATCH];
        let mut blocks = [Block::default(); BATCH];
        for batch in sector.chunks_mut(16 * BATCH) {
            let count = batch.len() / 16;
            ciphertext[..batch.len()].copy_from_slice(batch);
            for (block, bytes) in blocks.iter_mut().zip(batch.chunks_exact(16)) {
                block.copy_from_slice(bytes);
            }
            self.0.decrypt_blocks(&mut blocks[..count]);
            for (index, bytes) in batch.chunks_exact_mut(16).enumerate() {
                bytes.copy_from_slice(&blocks[index]);
                xor(bytes, &previous);
                previous.copy_from_slice(&ciphertext[16 * index..16 * index + 16]);
            }
        }
    }
}

/// Multiply a tweak by alpha in GF(2^128), little-endian, polynomial x^128 + x^7 + x^2 + x + 1.
fn next_tweak(tweak: u128) -> u128 {
    (tweak << 1) ^ (0x87 * (tweak >> 127))
}

impl<C: Cipher + Send + Sync> Xts<C> {
    /// Whiten, run `crypt` over batches of blocks, whiten again.
    fn run(&self, iv: [u8; 16], sector: &mut [u8], crypt: impl Fn(&C, &mut [Block])) {
        let mut first = Block::from(iv);
        self.tweak.encrypt_block(&mut first);
        let mut tweak = u128::from_le_bytes(first.into());
        let mut tweaks = [0u128; BATCH];
        let mut blocks = [Block::default(); BATCH];
        for batch in sector.chunks_mut(16 * BATCH) {
            let count = batch.len() / 16;
            for (index, bytes) in batch.chunks_exact(16).enumerate() {
                tweaks[index] = tweak;
                blocks[index].copy_from_slice(bytes);
                xor(&mut blocks[index], &tweak.to_le_bytes());
                tweak = next_tweak(tweak);
            }
            crypt(&self.data, &mut blocks[..count]);
            for (index, bytes) in batch.chunks_exact_mut(16).enumerate() {
                bytes.copy_from_slice(&blocks[index]);
                xor(bytes, &tweaks[index].to_le_bytes());
            }
        }
    }
}

impl<C: Cipher + Send + Sync> Engine for Xts<C> {
    fn encrypt(&self, iv: [u8; 16], sector: &mut [u8]) {
        self.run(iv, sector, |cipher, blocks| cipher.encrypt_blocks(blocks));
    }

    fn decrypt(&self, iv: [u8; 16], sector: &mut [u8]) {
        self.run(iv, sector, |cipher, blocks| cipher.decrypt_blocks(blocks));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubling_reduces_by_the_polynomial() {
        assert_eq!(next_tweak(1), 2);
        assert_eq!(next_tweak(1 << 127), 0x87);
        assert_eq!(next_tweak((1 << 127) | 1), 0x85);
    }

    #[test]
    fn xts_matches_ieee_1619_vector_1() {
        let engine = Xts::<aes::Aes128>::new(&[0; 32]).unwrap();
        let mut sector = [0u8; 32];
        engine.encrypt([0; 16], &mut sector);
        assert_eq!(
            sector[..8],
            [0x91, 0x7c, 0xf6, 0x9e, 0xbd, 0x68, 0xb2, 0xec]
        );
        engine.decrypt([0; 16], &mut sector);
        assert_eq!(sector, [0; 32]);
    }
}
