//! RA-TLS for islet: TLS 1.3 whose client certificate carries a CCA attestation token.
//!
//! The server puts a fresh 64-byte nonce into the certificate request, as the one distinguished name of its
//! list of certificate authorities. The client binds its evidence to that nonce and to its TLS key
//! (SHA-512 over nonce and public key is the realm challenge) and shows the token in an X.509 extension. The
//! name is not DER, which is why this stands on rustls: it passes the bytes through unparsed.
//!
//! The crate knows neither Python nor CCA: what a token says is judged by an [`Appraiser`], where tokens come
//! from is the business of a [`TokenProvider`].
//!
//! | threat | answer | test |
//! |---|---|---|
//! | evidence replayed to another connection | a nonce per connection | `nonces_differ_between_connections` |
//! | evidence shown by another key | the challenge hashes the public key, the same bytes verify `CertificateVerify` | `a_foreign_key_is_refused` |
//! | resumption skips the evidence | no tickets, no session cache, no early data | `nothing_is_resumed` |
//! | a client sets identity headers itself | `X-Islet-*` is stripped before the backend sees a request | `identity_headers_are_stripped` |
//! | the backend names a file outside the store | the opened file's real path must lie under the store root | `files_outside_the_store_are_not_sent` |
//! | clients that stall | deadlines for handshake and silence, a bound on connections | `a_silent_client_is_dropped` |
#![forbid(unsafe_code)]

mod certificate;
mod challenge;
mod client;
mod error;
mod idle;
mod proxy;
mod sendfile;
mod server;
mod tls;
mod verifier;

pub use certificate::{Evidence, MAX_CERTIFICATE_BYTES, MAX_TOKEN_BYTES};
pub use challenge::{realm_challenge, Nonce, CHALLENGE_BYTES, NONCE_BYTES};
pub use client::{ClientOptions, ClientStream, Interrupt, TlsClient, TokenProvider};
pub use error::{BoxError, Error};
pub use server::{Event, Limits, Mode, Recorder, Server, ServerOptions};
pub use verifier::{AppraisalVerifier, Appraiser, Refusal};

/// Keying material of a finished TLS connection (RFC 8446 7.5), for evidence bound to the connection itself.
///
/// Both ends derive the same bytes for the same label and context, and nobody else can.
///
/// # Errors
/// The handshake is not complete, or more than 8160 bytes are wanted.
pub fn export_keying_material<Data>(
    connection: &rustls::ConnectionCommon<Data>,
    label: &[u8],
    context: Option<&[u8]>,
    length: usize,
) -> Result<Vec<u8>, Error> {
    connection
        .export_keying_material(vec![0; length], label, context)
        .map_err(Error::Tls)
}
