//! Real handshakes on loopback: an honest client, dishonest ones, and a backend on a Unix socket.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use islet_ratls::{
    realm_challenge, Appraiser, BoxError, ClientOptions, ClientStream, Error, Event, Interrupt,
    Limits, Mode, Nonce, Recorder, Refusal, Server, ServerOptions, TlsClient, TokenProvider,
};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, IsCa, Issuer, KeyPair, PublicKeyData as _,
};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, SignatureScheme};

static COUNTER: AtomicUsize = AtomicUsize::new(0);

struct NoInterrupt;

impl Interrupt for NoInterrupt {
    fn check(&self) -> Result<(), BoxError> {
        Ok(())
    }
}

/// The challenge itself is the token: what a real appraiser finds inside one.
struct Echo;

impl TokenProvider for Echo {
    fn token(&self, challenge: &[u8; 64]) -> Result<Vec<u8>, BoxError> {
        Ok(challenge.to_vec())
    }
}

struct Fixed(Vec<u8>);

impl TokenProvider for Fixed {
    fn token(&self, _challenge: &[u8; 64]) -> Result<Vec<u8>, BoxError> {
        Ok(self.0.clone())
    }
}

struct Failing;

impl TokenProvider for Failing {
    fn token(&self, _challenge: &[u8; 64]) -> Result<Vec<u8>, BoxError> {
        Err("the monitor is busy".into())
    }
}

/// Accepts tokens that are the challenge, and remembers every nonce.
#[derive(Default)]
struct Binding {
    nonces: Mutex<Vec<Vec<u8>>>,
}

impl Appraiser for Binding {
    fn appraise(&self, token: &[u8], nonce: &[u8; 64], spki: &[u8]) -> Result<String, Refusal> {
        self.nonces.lock().unwrap().push(nonce.to_vec());
        if token == realm_challenge(nonce, spki) {
            Ok(r#"{"rim":"ab"}"#.into())
        } else {
            Err(Refusal {
                code: "challenge".into(),
                message: "not bound to this connection".into(),
            })
        }
    }
}

#[derive(Default)]
struct Events(Mutex<Vec<Event>>);

impl Recorder for Events {
    fn record(&self, _peer: SocketAddr, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

impl Events {
    fn wait(&self, count: usize) -> Vec<Event> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let events = self.0.lock().unwrap().clone();
            if events.len() >= count {
                return events;
            }
            assert!(Instant::now() < end, "only {events:?} came");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn codes(&self, count: usize) -> Vec<String> {
        let code = |event| match event {
            Event::Admitted(_) => "admitted".to_string(),
            Event::Refused(refusal) => refusal.code,
        };
        self.wait(count).into_iter().map(code).collect()
    }
}

/// A server with its certificates, store and a backend that answers with the request it saw.
struct Fixture {
    directory: PathBuf,
    root_pem: Vec<u8>,
    server: Server,
    appraiser: Arc<Binding>,
    events: Arc<Events>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.server.stop(Duration::from_millis(200));
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn certificates() -> (Vec<u8>, (Vec<u8>, Vec<u8>)) {
    let root_key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_certificate = root.self_signed(&root_key).unwrap();
    let issuer = Issuer::new(root, root_key);
    let key = KeyPair::generate().unwrap();
    let params =
        CertificateParams::new(vec!["localhost".to_string(), "127.0.0.1".to_string()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let pem = |label: &str, der: &[u8]| pem_of(label, der);
    (
        pem("CERTIFICATE", root_certificate.der()),
        (
            pem("CERTIFICATE", certificate.der()),
            pem("PRIVATE KEY", &key.serialize_der()),
        ),
    )
}

fn pem_of(label: &str, der: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n").into_bytes()
}

/// Answer every connection once: `/file` names `store/blob`, anything else gets its own head back.
fn backend(socket: &Path, store: PathBuf) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n")
                && stream.read(&mut byte).is_ok_and(|count| count == 1)
            {
                head.push(byte[0]);
            }
            let file = if head.starts_with(b"GET /file ") {
                "blob"
            } else {
                "../outside"
            };
            let answer = if head.starts_with(b"GET /file ") || head.starts_with(b"GET /outside ") {
                format!(
                    "HTTP/1.1 206 Partial Content\r\nX-Islet-Sendfile: {}\r\nX-Islet-Sendfile-Offset: 3\r\n\
                     X-Islet-Sendfile-Length: 4\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                    store.join(file).display()
                )
            } else {
                let text = String::from_utf8_lossy(&head);
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                    text.len()
                )
            };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
}

fn start(limits: Limits) -> Fixture {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let directory =
        std::env::temp_dir().join(format!("islet-ratls-{}-{number}", std::process::id()));
    let store = directory.join("store");
    std::fs::create_dir_all(&store).unwrap();
    std::fs::write(store.join("blob"), b"0123456789").unwrap();
    std::fs::write(directory.join("outside"), b"0123456789").unwrap();
    let socket = directory.join("backend.sock");
    backend(&socket, store.clone());
    let (root_pem, identity) = certificates();
    let (appraiser, events) = (Arc::new(Binding::default()), Arc::new(Events::default()));
    let server = Server::start(ServerOptions {
        listen: "127.0.0.1:0".into(),
        mode: Mode::RaTls(appraiser.clone()),
        identity: Some(identity),
        backend: socket,
        store,
        recorder: events.clone(),
        limits,
    })
    .unwrap();
    Fixture {
        directory,
        root_pem,
        server,
        appraiser,
        events,
    }
}

impl Fixture {
    fn connect_with(&self, client: &TlsClient) -> Result<ClientStream, Error> {
        let options = ClientOptions {
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
        };
        client.connect(
            "127.0.0.1",
            self.server.address().port(),
            options,
            Arc::new(NoInterrupt),
        )
    }

    fn client(&self, tokens: impl TokenProvider + 'static) -> TlsClient {
        TlsClient::new(&self.root_pem, Some(Arc::new(tokens))).unwrap()
    }

    fn get(&self, client: &TlsClient, path: &str, headers: &str) -> Result<String, Error> {
        let mut stream = self.connect_with(client)?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: registry\r\n{headers}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(String::from_utf8(answer).unwrap()),
                count => answer.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// A handshake by hand, with whatever certificate and key the resolver gives.
    fn raw(&self, config: ClientConfig) -> (ClientConnection, Result<(), rustls::Error>) {
        let name = ServerName::try_from("localhost").unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut socket = TcpStream::connect(self.server.address()).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        connection
            .writer()
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        loop {
            while connection.wants_write() {
                if connection.write_tls(&mut socket).is_err() {
                    break;
                }
            }
            if connection
                .read_tls(&mut socket)
                .map_or(true, |count| count == 0)
            {
                return (connection, Ok(()));
            }
            if let Err(error) = connection.process_new_packets() {
                return (connection, Err(error));
            }
        }
    }

    fn raw_config(&self, resolver: Arc<dyn ResolvesClientCert>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(&self.root_pem).unwrap())
            .unwrap();
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_cert_resolver(resolver)
    }
}

/// A hostile client: the certificate (and the evidence in it) is for `shown`, the handshake is signed by `used`.
#[derive(Debug)]
struct Forger {
    shown: KeyPair,
    used: KeyPair,
}

impl ResolvesClientCert for Forger {
    fn resolve(&self, names: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let nonce = Nonce::from_names(names).unwrap();
        let token = realm_challenge(nonce.as_bytes(), &self.shown.subject_public_key_info());
        let mut params = CertificateParams::default();
        params.custom_extensions = vec![CustomExtension::from_oid_content(
            &[1, 3, 3, 3, 7],
            token.to_vec(),
        )];
        let certificate = params.self_signed(&self.shown).unwrap().der().clone();
        let key = PrivateKeyDer::Pkcs8(self.used.serialize_der().into());
        let signing = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        Some(Arc::new(CertifiedKey::new(vec![certificate], signing)))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn honest() -> Arc<Forger> {
    let key = KeyPair::generate().unwrap();
    let again = KeyPair::try_from(key.serialize_der().as_slice()).unwrap();
    Arc::new(Forger {
        shown: key,
        used: again,
    })
}

#[test]
fn an_attested_client_is_served_and_named() {
    let fixture = start(Limits::default());
    let answer = fixture.get(&fixture.client(Echo), "/v2/", "").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    // {"rim":"ab"} in Base64 without padding.
    assert!(
        answer.contains("x-islet-realm: eyJyaW0iOiJhYiJ9\r\n"),
        "{answer}"
    );
    assert!(answer.contains("x-islet-peer: 127.0.0.1:"), "{answer}");
    assert_eq!(fixture.events.codes(1), ["admitted"]);
}

/// Upstream's clients have RSA keys and end up with RSA-PSS.
#[test]
fn an_rsa_client_is_served() {
    let fixture = start(Limits::default());
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/vectors/attestation/ratls_test_key.pem"
    );
    let der = PrivateKeyDer::from_pem_file(file).unwrap();
    let key = || KeyPair::try_from(&der).unwrap();
    let (connection, result) = fixture.raw(fixture.raw_config(Arc::new(Forger {
        shown: key(),
        used: key(),
    })));
    assert!(result.is_ok() && !connection.is_handshaking(), "{result:?}");
    assert_eq!(fixture.events.codes(1), ["admitted"]);
}

#[test]
fn headers_of_the_client_do_not_pass() {
    let fixture = start(Limits::default());
    let forged = "X-Islet-Realm: forged\r\nx-islet-peer: forged\r\nX_Islet_Realm: forged\r\nX-ISLET-Other: forged\r\n";
    let answer = fixture.get(&fixture.client(Echo), "/v2/", forged).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && !answer.contains("forged"),
        "{answer}"
    );
}

#[test]
fn files_of_the_store_are_sent_and_others_are_not() {
    let fixture = start(Limits::default());
    let client = fixture.client(Echo);
    let answer = fixture.get(&client, "/file", "").unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 206") && answer.ends_with("\r\n\r\n3456"),
        "{answer}"
    );
    assert!(
        answer.contains("content-length: 4\r\n") && !answer.contains("islet"),
        "{answer}"
    );
    let refused = fixture.get(&client, "/outside", "").unwrap();
    assert!(
        refused.starts_with("HTTP/1.1 502") && !refused.contains("3456"),
        "{refused}"
    );
}

#[test]
fn unbound_evidence_is_refused_and_the_client_learns_it() {
    let fixture = start(Limits::default());
    let error = fixture
        .get(&fixture.client(Fixed(vec![7; 64])), "/v2/", "")
        .unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error}");
    assert_eq!(fixture.events.codes(1), ["challenge"]);
}

#[test]
fn a_client_without_evidence_is_refused() {
    let fixture = start(Limits::default());
    let plain = TlsClient::new(&fixture.root_pem, None).unwrap();
    let error = fixture.get(&plain, "/v2/", "").unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
    assert_eq!(fixture.events.codes(1), ["no-certificate"]);
}

#[test]
fn the_providers_own_error_comes_back() {
    let fixture = start(Limits::default());
    let error = fixture
        .get(&fixture.client(Failing), "/v2/", "")
        .unwrap_err();
    assert!(
        matches!(&error, Error::Provider(inner) if inner.to_string() == "the monitor is busy"),
        "{error}"
    );
}

#[test]
fn a_foreign_key_is_refused() {
    let fixture = start(Limits::default());
    let forger = Forger {
        shown: KeyPair::generate().unwrap(),
        used: KeyPair::generate().unwrap(),
    };
    let (_, result) = fixture.raw(fixture.raw_config(Arc::new(forger)));
    assert!(
        matches!(result, Err(rustls::Error::AlertReceived(_))),
        "{result:?}"
    );
    assert_eq!(fixture.events.codes(1), ["foreign-key"]);
}

#[test]
fn nonces_differ_between_connections() {
    let fixture = start(Limits::default());
    let client = fixture.client(Echo);
    for _ in 0..3 {
        fixture.get(&client, "/v2/", "").unwrap();
    }
    let mut nonces = fixture.appraiser.nonces.lock().unwrap().clone();
    nonces.sort();
    nonces.dedup();
    assert_eq!(nonces.len(), 3);
}

#[test]
fn a_token_of_an_earlier_connection_is_refused() {
    struct Replay(Mutex<Option<Vec<u8>>>);
    impl TokenProvider for Replay {
        fn token(&self, challenge: &[u8; 64]) -> Result<Vec<u8>, BoxError> {
            Ok(self
                .0
                .lock()
                .unwrap()
                .get_or_insert_with(|| challenge.to_vec())
                .clone())
        }
    }
    let fixture = start(Limits::default());
    let client = fixture.client(Replay(Mutex::new(None)));
    fixture.get(&client, "/v2/", "").unwrap();
    assert!(matches!(
        fixture.get(&client, "/v2/", ""),
        Err(Error::Refused(_))
    ));
}

#[test]
fn nothing_is_resumed() {
    let fixture = start(Limits::default());
    let mut config = fixture.raw_config(honest());
    config.resumption = Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    for _ in 0..2 {
        let (connection, result) = fixture.raw(config.clone());
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(connection.tls13_tickets_received(), 0);
    }
    assert_eq!(fixture.appraiser.nonces.lock().unwrap().len(), 2);
}

#[test]
fn tls_1_2_is_not_spoken() {
    let fixture = start(Limits::default());
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&fixture.root_pem).unwrap())
        .unwrap();
    let config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_cert_resolver(honest());
    let (_, result) = fixture.raw(config);
    assert!(
        matches!(result, Err(rustls::Error::AlertReceived(_))),
        "{result:?}"
    );
}

#[test]
fn another_root_is_refused_by_the_client() {
    let fixture = start(Limits::default());
    let (other_root, _) = certificates();
    let client = TlsClient::new(&other_root, Some(Arc::new(Echo))).unwrap();
    assert!(matches!(
        fixture.connect_with(&client),
        Err(Error::ServerCertificate(_))
    ));
    assert!(fixture.appraiser.nonces.lock().unwrap().is_empty());
}

#[test]
fn a_silent_client_is_dropped() {
    let fixture = start(Limits {
        handshake: Duration::from_millis(200),
        ..Limits::default()
    });
    let mut socket = TcpStream::connect(fixture.server.address()).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    assert_eq!(fixture.events.codes(1), ["handshake-timeout"]);
}

#[test]
fn an_idle_connection_is_closed() {
    let fixture = start(Limits {
        idle: Duration::from_millis(200),
        ..Limits::default()
    });
    let mut stream = fixture.connect_with(&fixture.client(Echo)).unwrap();
    let begun = Instant::now();
    // The end may come with or without close notification.
    let _ = stream.read(&mut [0; 16]);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn connections_beyond_the_limit_are_closed() {
    let fixture = start(Limits {
        connections: 1,
        ..Limits::default()
    });
    let held = fixture.connect_with(&fixture.client(Echo)).unwrap();
    fixture.events.wait(1);
    assert!(fixture.get(&fixture.client(Echo), "/v2/", "").is_err());
    assert_eq!(fixture.events.codes(2)[1], "too-many-connections");
    drop(held);
}

#[test]
fn oversized_headers_are_refused() {
    let fixture = start(Limits {
        header_bytes: 8192,
        ..Limits::default()
    });
    let answer = fixture.get(
        &fixture.client(Echo),
        "/v2/",
        &format!("X-Big: {}\r\n", "a".repeat(20_000)),
    );
    assert!(answer.map_or(true, |text| text.starts_with("HTTP/1.1 431")));
}

#[test]
fn both_ends_export_the_same_bytes() {
    let (root_pem, (chain, key)) = certificates();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&root_pem).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(&chain).unwrap()],
            PrivateKeyDer::from_pem_slice(&key).unwrap(),
        )
        .unwrap();
    let mut client =
        ClientConnection::new(Arc::new(client), "localhost".try_into().unwrap()).unwrap();
    let mut server = rustls::ServerConnection::new(Arc::new(server)).unwrap();
    assert!(islet_ratls::export_keying_material(&client, b"islet", None, 32).is_err());
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets().unwrap();
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets().unwrap();
    }
    let export = |context| {
        (
            islet_ratls::export_keying_material(&client, b"islet", context, 32).unwrap(),
            islet_ratls::export_keying_material(&server, b"islet", context, 32).unwrap(),
        )
    };
    let (one, other) = export(Some(b"context".as_slice()));
    assert_eq!(one, other);
    assert_ne!(one, export(Some(b"another".as_slice())).0);
}
