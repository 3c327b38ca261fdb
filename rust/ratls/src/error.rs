//! The errors of both roles.

use std::io;

/// An error that came from a hook (a token provider, an interrupt) and is handed back as it was.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a connection, a listener or a configuration failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate, key or option cannot be used.
    #[error("{what}: {reason}")]
    Config {
        /// Which input.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The host name has no address.
    #[error("the name {host} cannot be resolved: {source}")]
    Resolve {
        /// The host as given.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The other side did not answer in time.
    #[error("no answer within {0} s")]
    Timeout(f64),
    /// The server ended the handshake after it saw our evidence.
    #[error("the server refused this client's evidence (TLS alert {0})")]
    Refused(String),
    /// The server finished the handshake without asking for evidence.
    #[error("the server did not ask for evidence: it does not speak RA-TLS")]
    NotRequested,
    /// The server's list of certificate authorities is not an RA-TLS challenge.
    #[error("the server sent no usable challenge: {0}")]
    Challenge(&'static str),
    /// The token provider failed.
    #[error("no attestation token: {0}")]
    Provider(BoxError),
    /// The caller's interrupt hook asked to stop.
    #[error("interrupted: {0}")]
    Interrupted(BoxError),
    /// The server's certificate does not hold against the given root.
    #[error("the server's certificate is not accepted: {0}")]
    ServerCertificate(rustls::Error),
    /// Any other failure of the TLS protocol.
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    /// The transport failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<rustls::Error> for Error {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
                Self::ServerCertificate(error)
            }
            other => Self::Tls(other),
        }
    }
}

/// The rustls error inside an I/O error, if there is one.
pub(crate) fn tls_cause(error: &io::Error) -> Option<&rustls::Error> {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
}
