//! The listener: accept, shake hands, appraise, proxy.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{watch, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::challenge::{Nonce, NONCE_BYTES};
use crate::error::{tls_cause, Error};
use crate::idle::Idle;
use crate::proxy::{Backend, Proxy};
use crate::sendfile::Store;
use crate::tls;
use crate::verifier::{AppraisalVerifier, Appraiser, Refusal};

/// How long a refused client may take to read the alert before its socket is closed.
const LINGER: Duration = Duration::from_secs(2);

/// What a refused client may still send meanwhile, in bytes.
const LINGER_BYTES: u64 = 256 << 10;

/// How a listener authenticates.
pub enum Mode {
    /// Plain HTTP.
    None,
    /// An ordinary server certificate.
    Tls,
    /// The server certificate, and evidence from every client.
    RaTls(Arc<dyn Appraiser>),
}

/// Bounds on what clients may ask of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; further ones are closed at once.
    pub connections: usize,
    /// From accepting to the end of the handshake; includes the client's fetching of its token.
    pub handshake: Duration,
    /// Without a byte in either direction, and for the head of a request.
    pub idle: Duration,
    /// Request line and headers, in bytes.
    pub header_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            handshake: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            header_bytes: 64 << 10,
        }
    }
}

/// What happened to a connection attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A realm's evidence was accepted; its identity as JSON.
    Admitted(String),
    /// The handshake did not come to an end, or ended with a refusal.
    Refused(Refusal),
}

/// Is told who was let in and who was not.
pub trait Recorder: Send + Sync {
    /// One event of one client. Called on a thread that may block.
    fn record(&self, peer: SocketAddr, event: &Event);
}

/// Everything that a listener needs.
pub struct ServerOptions {
    /// Address to bind, `HOST:PORT`; port 0 takes any.
    pub listen: String,
    /// How clients and server authenticate.
    pub mode: Mode,
    /// PEM certificate chain and PEM private key; needed unless the mode is `None`.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The backend's Unix socket.
    pub backend: PathBuf,
    /// The directory from which the backend may have files sent.
    pub store: PathBuf,
    /// Who is told about refusals and admissions.
    pub recorder: Arc<dyn Recorder>,
    /// Bounds.
    pub limits: Limits,
}

/// A running listener. Dropping it closes every connection.
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    runtime: Option<Runtime>,
}

struct Shared {
    mode: Mode,
    certified: Option<Arc<CertifiedKey>>,
    provider: Arc<CryptoProvider>,
    backend: Arc<Backend>,
    recorder: Arc<dyn Recorder>,
    limits: Limits,
}

impl Server {
    /// Bind and start to serve on threads of its own.
    ///
    /// # Errors
    /// The address is in use or not ours, the certificate and key are unusable, the store does not exist.
    pub fn start(options: ServerOptions) -> Result<Self, Error> {
        let provider = tls::provider();
        let certified = match (&options.mode, &options.identity) {
            (Mode::None, _) => None,
            (_, Some((chain, key))) => Some(Arc::new(tls::certified_key(chain, key, &provider)?)),
            (_, None) => {
                return Err(Error::Config {
                    what: "server certificate",
                    reason: "is not given".into(),
                })
            }
        };
        let shared = Arc::new(Shared {
            mode: options.mode,
            certified,
            provider,
            backend: Arc::new(Backend {
                socket: options.backend,
                store: Store::new(&options.store)?,
            }),
            recorder: options.recorder,
            limits: options.limits,
        });
        let listener = StdListener::bind(&options.listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(
                std::thread::available_parallelism()
                    .map_or(2, usize::from)
                    .max(2),
            )
            .thread_name("ratls")
            .enable_io()
            .enable_time()
            .build()?;
        let (stop, stopped) = watch::channel(false);
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        runtime.spawn(accept(listener, shared, stopped));
        Ok(Self {
            address,
            stop,
            runtime: Some(runtime),
        })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stop accepting, close the connections, wait at most `grace` for hooks that still run.
    pub fn stop(&mut self, grace: Duration) {
        self.stop.send_replace(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(grace);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(1));
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(shared.limits.connections));
    loop {
        let accepted = tokio::select! {
            _ = stopped.changed() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                // A full house closes the door at once instead of letting callers queue without an answer.
                if let Ok(permit) = slots.clone().try_acquire_owned() {
                    tokio::spawn(serve(socket, peer, shared.clone(), permit));
                } else {
                    let message =
                        format!("{} connections are open already", shared.limits.connections);
                    report(
                        &shared,
                        peer,
                        Event::Refused(Refusal {
                            code: "too-many-connections".into(),
                            message,
                        }),
                    );
                }
            }
            // Out of descriptors or a client that left: neither ends the listener.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve(
    socket: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
) {
    if socket.set_nodelay(true).is_err() {
        return;
    }
    match &shared.mode {
        Mode::None => http(socket, peer, None, &shared).await,
        Mode::Tls | Mode::RaTls(_) => match shake_hands(socket, &shared).await {
            Ok((stream, identity)) => {
                if let Some(identity) = &identity {
                    report(&shared, peer, Event::Admitted(identity.clone()));
                }
                http(stream, peer, identity.as_deref(), &shared).await;
            }
            Err(failed) => {
                report(&shared, peer, Event::Refused(failed.refusal));
                if let Some(socket) = failed.socket {
                    linger(socket).await;
                }
            }
        },
    }
}

/// Record on a thread that may block, without making the others wait.
fn report(shared: &Shared, peer: SocketAddr, event: Event) {
    let recorder = shared.recorder.clone();
    tokio::task::spawn_blocking(move || recorder.record(peer, &event));
}

/// A handshake that came to nothing, with the socket while it is still open.
struct Failed {
    refusal: Refusal,
    socket: Option<TcpStream>,
}

impl Failed {
    fn new(code: &str, message: String) -> Self {
        let refusal = Refusal {
            code: code.into(),
            message,
        };
        Self {
            refusal,
            socket: None,
        }
    }
}

async fn shake_hands(
    socket: TcpStream,
    shared: &Shared,
) -> Result<(tokio_rustls::server::TlsStream<TcpStream>, Option<String>), Failed> {
    let (config, verifier) =
        configure(shared).map_err(|error| Failed::new("internal", error.to_string()))?;
    let limit = shared.limits.handshake;
    let handshake = TlsAcceptor::from(Arc::new(config))
        .accept(socket)
        .into_fallible();
    let finished = timeout(limit, handshake).await.map_err(|_| {
        let seconds = limit.as_secs_f64();
        Failed::new(
            "handshake-timeout",
            format!("no complete handshake within {seconds} s"),
        )
    })?;
    let appraised = verifier.map(|verifier| verifier.result());
    match (finished, appraised) {
        (Ok(stream), None) => Ok((stream, None)),
        (Ok(stream), Some(Some(Ok(identity)))) => Ok((stream, Some(identity))),
        (Ok(_), Some(None)) => Err(Failed::new(
            "no-certificate",
            "the handshake ended without evidence".into(),
        )),
        (Ok(_), Some(Some(Err(refusal)))) => Err(Failed {
            refusal,
            socket: None,
        }),
        (Err((_, socket)), Some(Some(Err(refusal)))) => Err(Failed {
            refusal,
            socket: Some(socket),
        }),
        (Err((error, socket)), _) => Err(Failed {
            refusal: protocol_refusal(&error),
            socket: Some(socket),
        }),
    }
}

/// The configuration of one connection; in ra-tls mode its verifier knows one nonce, used nowhere else.
fn configure(shared: &Shared) -> Result<(ServerConfig, Option<Arc<AppraisalVerifier>>), Error> {
    let certified = shared.certified.clone().ok_or(Error::Config {
        what: "server certificate",
        reason: "is not given".into(),
    })?;
    let resolver: Arc<dyn ResolvesServerCert> = Arc::new(SingleCertAndKey::from(certified));
    let builder = ServerConfig::builder_with_provider(shared.provider.clone());
    let (mut config, verifier) = match &shared.mode {
        Mode::RaTls(appraiser) => {
            let nonce = Nonce::random(&shared.provider)?;
            let blocking: Arc<dyn Appraiser> = Arc::new(Blocking(appraiser.clone()));
            let verifier = Arc::new(AppraisalVerifier::new(
                nonce,
                blocking,
                shared.provider.clone(),
            ));
            let config = builder
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_client_cert_verifier(verifier.clone())
                .with_cert_resolver(resolver);
            (config, Some(verifier))
        }
        Mode::None | Mode::Tls => {
            let config = builder
                .with_protocol_versions(rustls::ALL_VERSIONS)?
                .with_no_client_auth()
                .with_cert_resolver(resolver);
            (config, None)
        }
    };
    // Resumption would skip the client's certificate, early data would come before it.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok((config, verifier))
}

/// Lets an appraiser block without holding up the other connections of its thread.
struct Blocking(Arc<dyn Appraiser>);

impl Appraiser for Blocking {
    fn appraise(
        &self,
        token: &[u8],
        nonce: &[u8; NONCE_BYTES],
        spki: &[u8],
    ) -> Result<String, Refusal> {
        tokio::task::block_in_place(|| self.0.appraise(token, nonce, spki))
    }
}

/// A refusal that the TLS library decided, in its own words.
fn protocol_refusal(error: &io::Error) -> Refusal {
    let refusal = |code: &str, message: String| Refusal {
        code: code.into(),
        message,
    };
    match tls_cause(error) {
        Some(rustls::Error::NoCertificatesPresented) => refusal(
            "no-certificate",
            "the client showed no certificate, hence no evidence".into(),
        ),
        Some(rustls::Error::InvalidCertificate(CertificateError::BadSignature)) => refusal(
            "foreign-key",
            "the client does not hold the private key of its certificate".into(),
        ),
        Some(rustls::Error::AlertReceived(alert)) => refusal(
            "client-alert",
            format!("the client ended the handshake with alert {alert:?}"),
        ),
        Some(cause) => refusal("tls", cause.to_string()),
        None => refusal(
            "disconnected",
            format!("the connection broke during the handshake: {error}"),
        ),
    }
}

/// Give the client time to read the alert. Closing with unread input would reset the connection, and the
/// alert, which explains the refusal, would be lost with it.
async fn linger(mut socket: TcpStream) {
    let _ = timeout(LINGER, async {
        if socket.shutdown().await.is_ok() {
            let _ = tokio::io::copy(
                &mut (&mut socket).take(LINGER_BYTES),
                &mut tokio::io::sink(),
            )
            .await;
        }
    })
    .await;
}

async fn http<S>(stream: S, peer: SocketAddr, identity: Option<&str>, shared: &Shared)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let proxy = Arc::new(Proxy::new(
        shared.backend.clone(),
        &peer.to_string(),
        identity,
    ));
    let service = service_fn(move |request| {
        let proxy = proxy.clone();
        async move { Ok::<_, std::convert::Infallible>(proxy.answer(request).await) }
    });
    // A client that breaks off is its own affair.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.idle)
        .max_buf_size(shared.limits.header_bytes)
        .serve_connection(TokioIo::new(Idle::new(stream, shared.limits.idle)), service)
        .await;
}
