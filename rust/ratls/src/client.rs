//! The client: blocking TLS streams, with evidence where the server asks for it.

use std::fmt;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rcgen::{KeyPair, PublicKeyData as _, PKCS_ECDSA_P256_SHA256};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SignatureScheme};

use crate::certificate::with_token;
use crate::challenge::{realm_challenge, Nonce, CHALLENGE_BYTES};
use crate::error::{tls_cause, BoxError, Error};
use crate::tls;

/// How long one system call may block before the interrupt hook is asked again.
const SLICE: Duration = Duration::from_millis(250);

/// Bytes read from the socket at once.
const SOCKET_BUFFER: usize = 64 << 10;

/// Where attestation tokens come from.
pub trait TokenProvider: Send + Sync {
    /// Return the CCA token for `challenge`.
    ///
    /// # Errors
    /// Whatever went wrong; the caller of `connect` gets it back as [`Error::Provider`].
    fn token(&self, challenge: &[u8; CHALLENGE_BYTES]) -> Result<Vec<u8>, BoxError>;
}

/// Lets the caller end a blocking call early.
pub trait Interrupt: Send + Sync {
    /// Asked several times a second while a call blocks.
    ///
    /// # Errors
    /// Any error ends the call with [`Error::Interrupted`].
    fn check(&self) -> Result<(), BoxError>;
}

/// Settings of one connection.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// For establishing the TCP connection.
    pub connect_timeout: Duration,
    /// Without a byte from the other side, during the handshake and afterwards.
    pub timeout: Duration,
}

/// A client configuration: trusted roots, and for RA-TLS one key and a source of tokens.
pub struct TlsClient {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    attesting: Option<Attesting>,
}

#[derive(Clone)]
struct Attesting {
    key: Arc<KeyPair>,
    tokens: Arc<dyn TokenProvider>,
}

impl TlsClient {
    /// A client that trusts the certificates of `root_pem` and, given `tokens`, speaks RA-TLS only.
    ///
    /// # Errors
    /// The PEM holds no usable certificate.
    pub fn new(root_pem: &[u8], tokens: Option<Arc<dyn TokenProvider>>) -> Result<Self, Error> {
        let roots = Arc::new(tls::roots(root_pem)?);
        let attesting = match tokens {
            None => None,
            Some(tokens) => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| {
                    Error::Config {
                        what: "client key",
                        reason: error.to_string(),
                    }
                })?;
                Some(Attesting {
                    key: Arc::new(key),
                    tokens,
                })
            }
        };
        Ok(Self {
            roots,
            provider: tls::provider(),
            attesting,
        })
    }

    /// Connect to `host` (a name or an address, which is also the TLS server name) and finish the handshake.
    ///
    /// # Errors
    /// Every variant of [`Error`]; a refusal may also show only at the first read, because a TLS 1.3 client
    /// is done before the server has judged its certificate.
    pub fn connect(
        &self,
        host: &str,
        port: u16,
        options: ClientOptions,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<ClientStream, Error> {
        let name = ServerName::try_from(host.to_string()).map_err(|_| Error::Config {
            what: "host",
            reason: format!("{host} is no host name or address"),
        })?;
        let (config, failure) = self.config()?;
        let connection = ClientConnection::new(Arc::new(config), name)?;
        let socket = dial(host, port, options.connect_timeout)?;
        let mut stream = ClientStream {
            connection,
            socket: BufReader::with_capacity(SOCKET_BUFFER, socket),
            timeout: options.timeout,
            interrupt,
            attesting: self.attesting.is_some(),
            answered: false,
        };
        let handshake = stream.handshake();
        if self.attesting.is_some() {
            match std::mem::take(&mut *failure.0.lock().unwrap_or_else(PoisonError::into_inner)) {
                Asked::Failed(error) => return Err(error),
                Asked::Never if handshake.is_ok() => return Err(Error::NotRequested),
                Asked::Never | Asked::Answered => {}
            }
        }
        handshake.map(|()| stream)
    }

    fn config(&self) -> Result<(ClientConfig, Arc<Slot>), Error> {
        let versions: &[&rustls::SupportedProtocolVersion] = if self.attesting.is_some() {
            &[&rustls::version::TLS13]
        } else {
            rustls::ALL_VERSIONS
        };
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(versions)?
            .with_root_certificates(self.roots.clone());
        let slot = Arc::new(Slot::default());
        let mut config = match &self.attesting {
            None => builder.with_no_client_auth(),
            Some(attesting) => builder.with_client_cert_resolver(Arc::new(Resolver {
                attesting: attesting.clone(),
                provider: self.provider.clone(),
                slot: slot.clone(),
            })),
        };
        config.resumption = Resumption::disabled();
        Ok((config, slot))
    }
}

/// Try each address of the host in turn; the last failure is the one that is told.
fn dial(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, Error> {
    let addresses = (host, port)
        .to_socket_addrs()
        .map_err(|source| Error::Resolve {
            host: host.to_string(),
            source,
        })?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                socket.set_read_timeout(Some(SLICE))?;
                socket.set_write_timeout(Some(SLICE))?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(match last.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            Error::Timeout(timeout.as_secs_f64())
        }
        _ => Error::Io(last),
    })
}

/// What became of the server's request for evidence.
#[derive(Debug, Default)]
enum Asked {
    #[default]
    Never,
    Answered,
    Failed(Error),
}

#[derive(Debug, Default)]
struct Slot(Mutex<Asked>);

/// Answers a certificate request with fresh evidence. One for each connection.
struct Resolver {
    attesting: Attesting,
    provider: Arc<CryptoProvider>,
    slot: Arc<Slot>,
}

impl Resolver {
    fn certify(&self, names: &[&[u8]]) -> Result<CertifiedKey, Error> {
        let nonce = Nonce::from_names(names)?;
        let key = &self.attesting.key;
        let challenge = realm_challenge(nonce.as_bytes(), &key.subject_public_key_info());
        let token = self
            .attesting
            .tokens
            .token(&challenge)
            .map_err(Error::Provider)?;
        let certificate = with_token(key, &token, &self.provider)?;
        let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let signing = rustls::crypto::ring::sign::any_ecdsa_type(&private)?;
        Ok(CertifiedKey::new(vec![certificate], signing))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, names: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let result = self.certify(names);
        let mut asked = self.slot.0.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(certified) => {
                *asked = Asked::Answered;
                Some(Arc::new(certified))
            }
            Err(error) => {
                *asked = Asked::Failed(error);
                None
            }
        }
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A blocking TLS connection.
pub struct ClientStream {
    connection: ClientConnection,
    /// rustls asks for 4 KiB at a time; the buffer turns that into fewer system calls.
    socket: BufReader<TcpStream>,
    timeout: Duration,
    interrupt: Arc<dyn Interrupt>,
    attesting: bool,
    /// A byte of the application has come back.
    answered: bool,
}

impl ClientStream {
    /// Change how long the stream waits for a byte.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Read at least one byte, at most `buffer.len()`; 0 is the orderly end of the connection.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Timeout`], [`Error::Interrupted`], transport and protocol failures. An end
    /// without close notification is an I/O error, since somebody else may have cut the connection.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let mut deadline = Instant::now() + self.timeout;
        loop {
            match self.connection.reader().read(buffer) {
                Ok(count) => {
                    self.answered = true;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(Error::Io(error)),
            }
            if self.pump(Direction::Read, deadline)? {
                deadline = Instant::now() + self.timeout;
            }
        }
    }

    /// Write all of `data` and flush it to the socket.
    ///
    /// # Errors
    /// As for [`ClientStream::read`].
    pub fn write_all(&mut self, mut data: &[u8]) -> Result<(), Error> {
        let mut deadline = Instant::now() + self.timeout;
        while !data.is_empty() || self.connection.wants_write() {
            if !data.is_empty() {
                let count = self.connection.writer().write(data)?;
                data = &data[count..];
            }
            while self.connection.wants_write() {
                if self.pump(Direction::Write, deadline)? {
                    deadline = Instant::now() + self.timeout;
                }
            }
        }
        Ok(())
    }

    /// Say goodbye and close the socket. Failures do not matter any more.
    pub fn close(&mut self) {
        self.connection.send_close_notify();
        let _ = self.connection.write_tls(&mut self.socket.get_ref());
        let _ = self.socket.get_ref().shutdown(Shutdown::Both);
    }

    /// Keying material of this connection; see [`crate::export_keying_material`].
    ///
    /// # Errors
    /// More than 8160 bytes are wanted.
    pub fn export_keying_material(
        &self,
        label: &[u8],
        context: Option<&[u8]>,
        length: usize,
    ) -> Result<Vec<u8>, Error> {
        crate::export_keying_material(&self.connection, label, context, length)
    }

    fn handshake(&mut self) -> Result<(), Error> {
        let mut deadline = Instant::now() + self.timeout;
        while self.connection.is_handshaking() || self.connection.wants_write() {
            let direction = if self.connection.wants_write() {
                Direction::Write
            } else {
                Direction::Read
            };
            if self.pump(direction, deadline)? {
                deadline = Instant::now() + self.timeout;
            }
        }
        Ok(())
    }

    /// Move bytes once between socket and connection; false when a slice passed without any.
    fn pump(&mut self, direction: Direction, deadline: Instant) -> Result<bool, Error> {
        let moved = match direction {
            Direction::Read => self.connection.read_tls(&mut self.socket),
            Direction::Write => self.connection.write_tls(&mut self.socket.get_ref()),
        };
        match moved {
            Ok(count) => {
                if matches!(direction, Direction::Read) {
                    self.process()?;
                    if count == 0 && self.connection.is_handshaking() {
                        let reason = "the server closed the connection during the handshake";
                        return Err(Error::Io(io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            reason,
                        )));
                    }
                }
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted || blocked(&error) => {
                self.interrupt.check().map_err(Error::Interrupted)?;
                if Instant::now() >= deadline {
                    return Err(Error::Timeout(self.timeout.as_secs_f64()));
                }
                Ok(false)
            }
            // The server may have closed after an alert that is still to be read.
            Err(error) if matches!(direction, Direction::Write) && self.awaits_verdict() => {
                while self
                    .connection
                    .read_tls(&mut self.socket)
                    .is_ok_and(|count| count > 0)
                {
                    self.process()?;
                }
                Err(Error::Io(error))
            }
            Err(error) => Err(match tls_cause(&error) {
                Some(cause) => Error::from(cause.clone()),
                None => Error::Io(error),
            }),
        }
    }

    /// Our evidence is out and nothing has come back yet: an alert now is the server's refusal.
    fn awaits_verdict(&self) -> bool {
        self.attesting && !self.answered && !self.connection.is_handshaking()
    }

    fn process(&mut self) -> Result<(), Error> {
        match self.connection.process_new_packets() {
            Ok(_) => Ok(()),
            Err(rustls::Error::AlertReceived(alert)) if self.awaits_verdict() => {
                Err(Error::Refused(format!("{alert:?}")))
            }
            Err(error) => {
                // Best effort: tell the server why, as the protocol wants it.
                let _ = self.connection.write_tls(&mut self.socket.get_ref());
                Err(error.into())
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

fn blocked(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
