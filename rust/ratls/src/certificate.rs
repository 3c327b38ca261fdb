//! The certificate that carries a token: written by the client, read by the server.

use rcgen::{
    date_time_ymd, CertificateParams, CustomExtension, DistinguishedName, KeyPair, SerialNumber,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::Error;

/// The extension whose value is the CBOR token itself: 1.3.3.3.7 (upstream's choice).
const TOKEN_OID: [u64; 5] = [1, 3, 3, 3, 7];

/// DER content of that object identifier.
const TOKEN_OID_DER: [u8; 4] = [0x2b, 0x03, 0x03, 0x07];

/// The largest certificate that is looked at, in bytes. Real ones have 1.5 to 6 KiB.
pub const MAX_CERTIFICATE_BYTES: usize = 32 << 10;

/// The largest token that is handed to an appraiser, in bytes.
pub const MAX_TOKEN_BYTES: usize = 24 << 10;

/// What a client certificate shows: the token and the key that the TLS session proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The CBOR token as it stands in the extension.
    pub token: Vec<u8>,
    /// DER `SubjectPublicKeyInfo` of the certificate.
    pub spki: Vec<u8>,
}

/// Why a certificate shows no evidence: a stable code and a sentence.
pub(crate) type NoEvidence = (&'static str, String);

impl Evidence {
    /// Read the evidence from a DER certificate.
    ///
    /// The self-signature, the dates and the names say nothing and are not checked; the first extension with
    /// the token's identifier counts.
    ///
    /// # Errors
    /// A stable code and a sentence: `certificate` (not a certificate, or too large), `no-token`.
    pub fn from_certificate(der: &[u8]) -> Result<Self, (&'static str, String)> {
        let malformed = |reason: String| -> NoEvidence { ("certificate", reason) };
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(malformed(format!(
                "the certificate is larger than {MAX_CERTIFICATE_BYTES} bytes"
            )));
        }
        let (rest, certificate) = X509Certificate::from_der(der)
            .map_err(|_| malformed("the certificate is not well-formed X.509".into()))?;
        if !rest.is_empty() {
            return Err(malformed("bytes follow the certificate".into()));
        }
        let extension = certificate
            .extensions()
            .iter()
            .find(|extension| extension.oid.as_bytes() == TOKEN_OID_DER)
            .ok_or_else(|| {
                (
                    "no-token",
                    "the certificate carries no attestation token".to_string(),
                )
            })?;
        if extension.value.len() > MAX_TOKEN_BYTES {
            return Err(malformed(format!(
                "the token is larger than {MAX_TOKEN_BYTES} bytes"
            )));
        }
        Ok(Self {
            token: extension.value.to_vec(),
            spki: certificate.public_key().raw.to_vec(),
        })
    }
}

/// Make the self-signed certificate that shows `token` for `key`.
///
/// Issuer and subject are empty, the validity is the fixed one of upstream's client, the token's extension is
/// the only one and not critical.
pub(crate) fn with_token(
    key: &KeyPair,
    token: &[u8],
    provider: &CryptoProvider,
) -> Result<CertificateDer<'static>, Error> {
    let failed = |reason: String| Error::Config {
        what: "client certificate",
        reason,
    };
    let mut serial = [0; 16];
    provider
        .secure_random
        .fill(&mut serial)
        .map_err(|_| failed("no random bytes".into()))?;
    // Positive and of full length: the first bit clear, the second set.
    serial[0] = (serial[0] & 0x3f) | 0x40;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date_time_ymd(2021, 5, 19);
    params.not_after = date_time_ymd(4096, 1, 1);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.custom_extensions = vec![CustomExtension::from_oid_content(
        &TOKEN_OID,
        token.to_vec(),
    )];
    let certificate = params
        .self_signed(key)
        .map_err(|error| failed(error.to_string()))?;
    Ok(certificate.der().clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{PublicKeyData, PKCS_ECDSA_P256_SHA256};

    fn key() -> KeyPair {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
    }

    #[test]
    fn a_certificate_shows_what_was_put_in() {
        let (key, provider) = (key(), crate::tls::provider());
        let der = with_token(&key, b"\xd9\x01\x8f token", &provider).unwrap();
        let evidence = Evidence::from_certificate(&der).unwrap();
        assert_eq!(evidence.token, b"\xd9\x01\x8f token");
        assert_eq!(evidence.spki, key.subject_public_key_info());
    }

    #[test]
    fn the_form_is_the_one_of_upstream() {
        let der = with_token(&key(), b"token", &crate::tls::provider()).unwrap();
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(parsed.version().0, 2);
        assert_eq!(parsed.subject().iter().count(), 0);
        assert_eq!(parsed.issuer().iter().count(), 0);
        assert_eq!(parsed.extensions().len(), 1);
        assert!(!parsed.extensions()[0].critical);
        assert_eq!(parsed.validity().not_before.timestamp(), 1_621_382_400);
        assert_eq!(parsed.validity().not_after.timestamp(), 67_090_118_400);
        assert!(parsed.raw_serial().len() <= 20 && parsed.raw_serial()[0] < 0x80);
    }

    #[test]
    fn without_the_extension_there_is_no_token() {
        let params = CertificateParams::default();
        let der = params.self_signed(&key()).unwrap();
        assert_eq!(
            Evidence::from_certificate(der.der()).unwrap_err().0,
            "no-token"
        );
    }

    #[test]
    fn the_first_of_two_tokens_counts() {
        let mut params = CertificateParams::default();
        params.custom_extensions = vec![
            CustomExtension::from_oid_content(&TOKEN_OID, b"first".to_vec()),
            CustomExtension::from_oid_content(&TOKEN_OID, b"second".to_vec()),
        ];
        let der = params.self_signed(&key()).unwrap();
        assert_eq!(
            Evidence::from_certificate(der.der()).unwrap().token,
            b"first"
        );
    }

    #[test]
    fn oversized_and_trailing_input_is_refused() {
        let der = with_token(
            &key(),
            &vec![0; MAX_TOKEN_BYTES + 1],
            &crate::tls::provider(),
        )
        .unwrap();
        assert_eq!(
            Evidence::from_certificate(&der).unwrap_err().0,
            "certificate"
        );
        let mut trailing = with_token(&key(), b"t", &crate::tls::provider())
            .unwrap()
            .to_vec();
        trailing.push(0);
        assert_eq!(
            Evidence::from_certificate(&trailing).unwrap_err().0,
            "certificate"
        );
        assert_eq!(
            Evidence::from_certificate(&vec![0x30; MAX_CERTIFICATE_BYTES + 1])
                .unwrap_err()
                .0,
            "certificate"
        );
    }

    proptest! {
        #[test]
        fn reading_certificates_never_panics(der in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Evidence::from_certificate(&der);
        }

        #[test]
        fn damaged_certificates_never_panic(position in 0usize..300, value: u8) {
            let mut der = with_token(&key(), b"token", &crate::tls::provider()).unwrap().to_vec();
            let length = der.len();
            der[position % length] = value;
            let _ = Evidence::from_certificate(&der);
        }
    }
}
