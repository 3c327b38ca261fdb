//! The nonce in the certificate request and the challenge made of it.

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use rustls::crypto::CryptoProvider;
use sha2::{Digest, Sha512};

use crate::error::Error;

/// Length of a server's nonce in bytes.
pub const NONCE_BYTES: usize = 64;

/// Length of a realm challenge in bytes.
pub const CHALLENGE_BYTES: usize = 64;

/// Standard padded Base64 of 64 bytes.
const ENCODED_BYTES: usize = 88;

/// The server's 64 random bytes, drawn once for one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nonce([u8; NONCE_BYTES]);

impl Nonce {
    /// Draw a nonce from the provider's secure random generator.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn random(provider: &CryptoProvider) -> Result<Self, Error> {
        let mut bytes = [0; NONCE_BYTES];
        provider
            .secure_random
            .fill(&mut bytes)
            .map_err(|_| Error::Config {
                what: "random generator",
                reason: "gives no bytes".into(),
            })?;
        Ok(Self(bytes))
    }

    /// A nonce with known bytes, for tests and vectors.
    pub fn from_bytes(bytes: [u8; NONCE_BYTES]) -> Self {
        Self(bytes)
    }

    /// The nonce itself.
    pub fn as_bytes(&self) -> &[u8; NONCE_BYTES] {
        &self.0
    }

    /// The 88 ASCII bytes that stand in the certificate request as a distinguished name (not DER).
    pub fn to_name(&self) -> Vec<u8> {
        STANDARD.encode(self.0).into_bytes()
    }

    /// Read the nonce from the names of a certificate request.
    ///
    /// # Errors
    /// Not exactly one name, not standard padded Base64, or not 64 bytes. A shorter nonce is refused because
    /// whoever chooses a short one could prepare evidence for it in advance.
    pub fn from_names(names: &[&[u8]]) -> Result<Self, Error> {
        let [name] = names else {
            return Err(Error::Challenge(
                "the certificate request does not hold exactly one name",
            ));
        };
        if name.len() != ENCODED_BYTES {
            return Err(Error::Challenge("the name is not 88 characters long"));
        }
        let decoded = STANDARD
            .decode(name)
            .map_err(|_| Error::Challenge("the name is not Base64"))?;
        let bytes = decoded
            .try_into()
            .map_err(|_| Error::Challenge("the nonce is not 64 bytes long"))?;
        Ok(Self(bytes))
    }
}

/// SHA-512 over nonce and DER `SubjectPublicKeyInfo`: the challenge that the realm token must carry.
pub fn realm_challenge(nonce: &[u8], spki: &[u8]) -> [u8; CHALLENGE_BYTES] {
    let mut hash = Sha512::new();
    hash.update(nonce);
    hash.update(spki);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_name_is_88_characters_and_reads_back() {
        let nonce = Nonce::from_bytes([0xfb; NONCE_BYTES]);
        let name = nonce.to_name();
        assert_eq!(name.len(), ENCODED_BYTES);
        assert!(name.ends_with(b"=="));
        assert_eq!(Nonce::from_names(&[&name]).unwrap(), nonce);
    }

    #[test]
    fn other_lists_are_refused() {
        let name = Nonce::from_bytes([1; NONCE_BYTES]).to_name();
        assert!(Nonce::from_names(&[]).is_err());
        assert!(Nonce::from_names(&[&name, &name]).is_err());
        assert!(Nonce::from_names(&[&name[..87]]).is_err());
        let mut url_alphabet = name.clone();
        url_alphabet[0] = b'-';
        assert!(Nonce::from_names(&[&url_alphabet]).is_err());
        let mut without_padding = name.clone();
        without_padding[86] = b'A';
        assert!(Nonce::from_names(&[&without_padding]).is_err());
    }

    #[test]
    fn the_challenge_is_the_hash_of_the_concatenation() {
        let whole: [u8; 64] = Sha512::digest(b"nonce and key").into();
        assert_eq!(realm_challenge(b"nonce ", b"and key"), whole);
    }

    proptest! {
        #[test]
        fn reading_names_never_panics(name in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Nonce::from_names(&[&name]);
        }

        #[test]
        fn every_nonce_survives_the_trip(bytes in proptest::array::uniform32(any::<u8>())) {
            let mut whole = [0; NONCE_BYTES];
            whole[..32].copy_from_slice(&bytes);
            whole[32..].copy_from_slice(&bytes);
            let nonce = Nonce::from_bytes(whole);
            prop_assert_eq!(Nonce::from_names(&[&nonce.to_name()]).unwrap(), nonce);
        }
    }
}
