//! Bindings of `islet-ratls`: the RA-TLS client stream and the listener of registry and gateway.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use islet_ratls::{
    Appraiser, BoxError, ClientOptions, Error, Event, Evidence, Interrupt, Limits, Mode, Recorder,
    Refusal, Server, ServerOptions, TlsClient, TokenProvider, CHALLENGE_BYTES, NONCE_BYTES,
};
use pyo3::exceptions::{PyConnectionError, PyOSError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{raise, Family};

/// Most bytes that one `recv` returns.
const MAX_RECV: usize = 64 << 10;

/// Map a library error. Transport failures become `OSError`, as sockets raise them; a failure of a Python hook
/// is raised as it was.
fn to_python(py: Python<'_>, error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Io(source) => os_error(&source),
        Error::Timeout(_) => PyTimeoutError::new_err(message),
        Error::Resolve { .. } => PyOSError::new_err(message),
        Error::Provider(source) | Error::Interrupted(source) => match source.downcast::<PyErr>() {
            Ok(original) => *original,
            Err(_) => raise(py, Family::Operation, "token_provider", &message),
        },
        Error::Refused(_) => raise(py, Family::Verification, "ratls_refused", &message),
        Error::NotRequested => raise(py, Family::Verification, "ratls_not_requested", &message),
        Error::Challenge(_) => raise(py, Family::Verification, "ratls_challenge", &message),
        Error::ServerCertificate(_) => {
            raise(py, Family::Verification, "server_certificate", &message)
        }
        Error::Tls(_) => raise(py, Family::Verification, "tls_protocol", &message),
        Error::Config { .. } => raise(py, Family::Input, "tls_config", &message),
    }
}

/// An `OSError` with its number, from which Python chooses the subclass.
fn os_error(error: &std::io::Error) -> PyErr {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(number) => {
            let reason = text.split(" (os error").next().unwrap_or(&text).to_string();
            PyOSError::new_err((number, reason))
        }
        None => PyConnectionError::new_err(text),
    }
}

fn duration(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| PyValueError::new_err("a time-out is a positive number of seconds"))
}

struct PythonTokens(Py<PyAny>);

impl TokenProvider for PythonTokens {
    fn token(&self, challenge: &[u8; CHALLENGE_BYTES]) -> Result<Vec<u8>, BoxError> {
        Python::attach(|py| -> PyResult<Vec<u8>> {
            self.0
                .bind(py)
                .call1((PyBytes::new(py, challenge),))?
                .extract()
        })
        .map_err(BoxError::from)
    }
}

struct PythonSignals;

impl Interrupt for PythonSignals {
    fn check(&self) -> Result<(), BoxError> {
        Python::attach(|py| py.check_signals()).map_err(BoxError::from)
    }
}

/// A client configuration: trusted roots and, with a token provider, RA-TLS with one key.
#[pyclass(frozen, module = "islet_cli._native.ratls")]
struct Client(TlsClient);

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (root_ca, token_provider=None))]
    fn new(py: Python<'_>, root_ca: &[u8], token_provider: Option<Py<PyAny>>) -> PyResult<Self> {
        let tokens = token_provider
            .map(|callable| Arc::new(PythonTokens(callable)) as Arc<dyn TokenProvider>);
        py.detach(|| TlsClient::new(root_ca, tokens))
            .map(Self)
            .map_err(|error| to_python(py, error))
    }

    fn connect(
        &self,
        py: Python<'_>,
        host: &str,
        port: u16,
        connect_timeout: f64,
        timeout: f64,
    ) -> PyResult<ClientStream> {
        let options = ClientOptions {
            connect_timeout: duration(connect_timeout)?,
            timeout: duration(timeout)?,
        };
        let stream = py
            .detach(|| self.0.connect(host, port, options, Arc::new(PythonSignals)))
            .map_err(|error| to_python(py, error))?;
        Ok(ClientStream(Mutex::new(Some(stream))))
    }
}

/// A connected, blocking TLS stream.
#[pyclass(frozen, module = "islet_cli._native.ratls")]
struct ClientStream(Mutex<Option<islet_ratls::ClientStream>>);

impl ClientStream {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut islet_ratls::ClientStream) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        py.detach(|| {
            let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            held.as_mut().map(work)
        })
        .ok_or_else(|| PyOSError::new_err("the stream is closed"))?
        .map_err(|error| to_python(py, error))
    }
}

#[pymethods]
impl ClientStream {
    fn recv<'py>(&self, py: Python<'py>, size: usize) -> PyResult<Bound<'py, PyBytes>> {
        let data = self.with(py, |stream| {
            let mut buffer = vec![0; size.min(MAX_RECV)];
            let count = stream.read(&mut buffer)?;
            buffer.truncate(count);
            Ok(buffer)
        })?;
        Ok(PyBytes::new(py, &data))
    }

    fn sendall(&self, py: Python<'_>, data: &[u8]) -> PyResult<()> {
        self.with(py, |stream| stream.write_all(data))
    }

    fn settimeout(&self, py: Python<'_>, seconds: f64) -> PyResult<()> {
        let timeout = duration(seconds)?;
        self.with(py, |stream| {
            stream.set_timeout(timeout);
            Ok(())
        })
    }

    #[pyo3(signature = (label, context, length))]
    fn export_keying_material<'py>(
        &self,
        py: Python<'py>,
        label: &[u8],
        context: Option<&[u8]>,
        length: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let data = self.with(py, |stream| {
            stream.export_keying_material(label, context, length)
        })?;
        Ok(PyBytes::new(py, &data))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| {
            if let Some(mut stream) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
                stream.close();
            }
        });
    }
}

struct PythonAppraiser(Py<PyAny>);

impl Appraiser for PythonAppraiser {
    fn appraise(
        &self,
        token: &[u8],
        nonce: &[u8; NONCE_BYTES],
        spki: &[u8],
    ) -> Result<String, Refusal> {
        Python::attach(|py| {
            let arguments = (
                PyBytes::new(py, token),
                PyBytes::new(py, nonce),
                PyBytes::new(py, spki),
            );
            let answer = self
                .0
                .bind(py)
                .call1(arguments)
                .and_then(|identity| identity.extract::<String>());
            answer.map_err(|error| refusal(py, &error))
        })
    }
}

/// The code and the words of the exception that refused; anything without a code is a fault, and refuses too.
fn refusal(py: Python<'_>, error: &PyErr) -> Refusal {
    let value = error.value(py);
    let code = value
        .getattr("code")
        .and_then(|code| code.extract::<String>())
        .unwrap_or_else(|_| "internal".into());
    let message = value
        .str()
        .map_or_else(|_| "the appraiser failed".into(), |text| text.to_string());
    Refusal { code, message }
}

struct PythonRecorder(Py<PyAny>);

impl Recorder for PythonRecorder {
    fn record(&self, peer: SocketAddr, event: &Event) {
        let (kind, code, text) = match event {
            Event::Admitted(identity) => ("admitted", "", identity.as_str()),
            Event::Refused(refusal) => ("refused", refusal.code.as_str(), refusal.message.as_str()),
        };
        Python::attach(|py| {
            if let Err(error) = self.0.bind(py).call1((peer.to_string(), kind, code, text)) {
                error.write_unraisable(py, None);
            }
        });
    }
}

/// The listener. Serves on threads of its own until `stop`.
#[pyclass(frozen, module = "islet_cli._native.ratls", name = "Server")]
struct PyServer {
    address: SocketAddr,
    server: Mutex<Option<Server>>,
}

#[pymethods]
impl PyServer {
    #[new]
    #[pyo3(signature = (
        listen, mode, *, backend, store, record, certificate=None, key=None, appraise=None,
        max_connections=512, handshake_timeout=60.0, idle_timeout=60.0
    ))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of one constructor
    fn new(
        py: Python<'_>,
        listen: String,
        mode: &str,
        backend: PathBuf,
        store: PathBuf,
        record: Py<PyAny>,
        certificate: Option<Vec<u8>>,
        key: Option<Vec<u8>>,
        appraise: Option<Py<PyAny>>,
        max_connections: usize,
        handshake_timeout: f64,
        idle_timeout: f64,
    ) -> PyResult<Self> {
        let mode = match (mode, appraise) {
            ("none", None) => Mode::None,
            ("tls", None) => Mode::Tls,
            ("ra-tls", Some(callable)) => Mode::RaTls(Arc::new(PythonAppraiser(callable))),
            ("none" | "tls", Some(_)) => {
                return Err(PyValueError::new_err("an appraiser belongs to mode ra-tls"))
            }
            ("ra-tls", None) => {
                return Err(PyValueError::new_err("mode ra-tls needs an appraiser"))
            }
            _ => return Err(PyValueError::new_err("the mode is none, tls or ra-tls")),
        };
        let limits = Limits {
            connections: max_connections,
            handshake: duration(handshake_timeout)?,
            idle: duration(idle_timeout)?,
            ..Limits::default()
        };
        let options = ServerOptions {
            listen,
            mode,
            identity: certificate.zip(key),
            backend,
            store,
            recorder: Arc::new(PythonRecorder(record)),
            limits,
        };
        let server = py
            .detach(|| Server::start(options))
            .map_err(|error| to_python(py, error))?;
        Ok(Self {
            address: server.address(),
            server: Mutex::new(Some(server)),
        })
    }

    #[getter]
    fn address(&self) -> String {
        self.address.to_string()
    }

    #[pyo3(signature = (grace=2.0))]
    fn stop(&self, py: Python<'_>, grace: f64) -> PyResult<()> {
        let grace = duration(grace)?;
        py.detach(|| {
            if let Some(mut server) = self
                .server
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
            {
                server.stop(grace);
            }
        });
        Ok(())
    }
}

/// Read token and public key from a DER client certificate.
#[pyfunction]
fn certificate_evidence<'py>(
    py: Python<'py>,
    certificate: &[u8],
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let evidence = Evidence::from_certificate(certificate)
        .map_err(|(code, message)| raise(py, Family::Verification, code, &message))?;
    Ok((
        PyBytes::new(py, &evidence.token),
        PyBytes::new(py, &evidence.spki),
    ))
}

/// The bytes that carry `nonce` in a certificate request.
#[pyfunction]
fn nonce_name<'py>(py: Python<'py>, nonce: [u8; NONCE_BYTES]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &islet_ratls::Nonce::from_bytes(nonce).to_name())
}

/// Fill the submodule `_native.ratls`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Client>()?;
    module.add_class::<ClientStream>()?;
    module.add_class::<PyServer>()?;
    module.add_function(wrap_pyfunction!(certificate_evidence, module)?)?;
    module.add_function(wrap_pyfunction!(nonce_name, module)?)
}
