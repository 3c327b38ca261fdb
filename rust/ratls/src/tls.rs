//! The cryptographic provider and the loading of PEM files: what both roles share.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, SignatureScheme};

use crate::error::Error;

/// Signature schemes that a server offers to attesting clients, in upstream's order. The PKCS #1 schemes at
/// its end exist in TLS 1.2 only and are left out.
pub(crate) const CLIENT_SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
];

/// The one provider, named explicitly so that no process-wide default decides.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let list = read.map_err(|error| Error::Config {
        what,
        reason: error.to_string(),
    })?;
    if list.is_empty() {
        return Err(Error::Config {
            what,
            reason: "holds no PEM certificate".into(),
        });
    }
    Ok(list)
}

/// Read trusted roots from PEM.
pub(crate) fn roots(pem: &[u8]) -> Result<RootCertStore, Error> {
    const WHAT: &str = "root certificate";
    let mut store = RootCertStore::empty();
    for certificate in certificates(WHAT, pem)? {
        store.add(certificate).map_err(|error| Error::Config {
            what: WHAT,
            reason: error.to_string(),
        })?;
    }
    Ok(store)
}

/// Read a certificate chain and its private key (PKCS #8, SEC1 or PKCS #1) from PEM; they must fit together.
pub(crate) fn certified_key(
    chain_pem: &[u8],
    key_pem: &[u8],
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Error> {
    let chain = certificates("server certificate", chain_pem)?;
    // The parser's own words never repeat key bytes, but they add nothing for a user either.
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| Error::Config {
        what: "server key",
        reason: "holds no PEM private key".into(),
    })?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| Error::Config {
        what: "server key",
        reason: match error {
            rustls::Error::InconsistentKeys(_) => "does not belong to the certificate".into(),
            other => other.to_string(),
        },
    })
}
