//! The server's side of the handshake: ask for evidence bound to one nonce and have it appraised.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls13_signature_with_raw_key, CryptoProvider};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, OtherError,
    PeerIncompatible, SignatureScheme,
};

use crate::certificate::Evidence;
use crate::challenge::{Nonce, NONCE_BYTES};
use crate::tls::CLIENT_SCHEMES;

/// Why a client was not let in: the words of the check that refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// Stable identifier, such as `challenge` or `no-token`.
    pub code: String,
    /// One sentence.
    pub message: String,
}

/// Judges evidence. Called once for a handshake, on a thread that may block.
pub trait Appraiser: Send + Sync {
    /// Decide about `token`, which must answer the challenge made of `nonce` and `spki`.
    ///
    /// Returns the identity of the realm as JSON.
    ///
    /// # Errors
    /// The refusal, in the words of the check that decided.
    fn appraise(
        &self,
        token: &[u8],
        nonce: &[u8; NONCE_BYTES],
        spki: &[u8],
    ) -> Result<String, Refusal>;
}

#[derive(Debug, Default)]
struct Outcome {
    result: Option<Result<String, Refusal>>,
    /// The key bytes that the appraised challenge covers.
    spki: Vec<u8>,
}

/// A certificate verifier for exactly one connection.
///
/// The public key that the challenge covers is the one whose bytes verify `CertificateVerify`: a second
/// parser of the certificate, which might see another key in it, has no say.
pub struct AppraisalVerifier {
    nonce: Nonce,
    names: Vec<DistinguishedName>,
    appraiser: Arc<dyn Appraiser>,
    provider: Arc<CryptoProvider>,
    outcome: Mutex<Outcome>,
}

impl AppraisalVerifier {
    /// A verifier that asks for evidence bound to `nonce`.
    pub fn new(nonce: Nonce, appraiser: Arc<dyn Appraiser>, provider: Arc<CryptoProvider>) -> Self {
        let names = vec![DistinguishedName::from(nonce.to_name())];
        Self {
            nonce,
            names,
            appraiser,
            provider,
            outcome: Mutex::default(),
        }
    }

    /// What the appraiser said; `None` when no certificate came so far.
    pub fn result(&self) -> Option<Result<String, Refusal>> {
        self.lock().result.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, certificate: &[u8]) -> Result<(String, Vec<u8>), Refusal> {
        let evidence =
            Evidence::from_certificate(certificate).map_err(|(code, message)| Refusal {
                code: code.into(),
                message,
            })?;
        let identity =
            self.appraiser
                .appraise(&evidence.token, self.nonce.as_bytes(), &evidence.spki)?;
        Ok((identity, evidence.spki))
    }
}

impl fmt::Debug for AppraisalVerifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("AppraisalVerifier")
            .finish_non_exhaustive()
    }
}

impl ClientCertVerifier for AppraisalVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.names
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let judged = self.judge(end_entity);
        let mut outcome = self.lock();
        match judged {
            Ok((identity, spki)) => {
                outcome.result = Some(Ok(identity));
                outcome.spki = spki;
                Ok(ClientCertVerified::assertion())
            }
            Err(refusal) => {
                outcome.result = Some(Err(refusal.clone()));
                Err(TlsError::InvalidCertificate(CertificateError::Other(
                    OtherError(Arc::new(refusal)),
                )))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        // TLS 1.2 would carry the evidence in clear; the configuration does not offer it.
        Err(TlsError::PeerIncompatible(
            PeerIncompatible::Tls12NotOfferedOrEnabled,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        _certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        if !CLIENT_SCHEMES.contains(&signature.scheme) {
            return Err(rustls::PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        let spki = SubjectPublicKeyInfoDer::from(self.lock().spki.clone());
        verify_tls13_signature_with_raw_key(
            message,
            &spki,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        CLIENT_SCHEMES.to_vec()
    }
}
