//! HTTP after the handshake: requests go to the backend's Unix socket, with headers that only this side sets.

use std::path::PathBuf;
use std::sync::Arc;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{handshake, SendRequest};
use hyper::header::{
    HeaderMap, HeaderName, HeaderValue, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST,
    TRANSFER_ENCODING,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::error::BoxError;
use crate::sendfile::Store;

/// Prefix of the headers that pass between this side and the backend, and nobody else.
const PRIVATE_PREFIX: &str = "x-islet-";

const PEER: HeaderName = HeaderName::from_static("x-islet-peer");
const REALM: HeaderName = HeaderName::from_static("x-islet-realm");
const SENDFILE: &str = "x-islet-sendfile";
const SENDFILE_OFFSET: &str = "x-islet-sendfile-offset";
const SENDFILE_LENGTH: &str = "x-islet-sendfile-length";

/// Headers that concern one hop only (RFC 9110 7.6.1).
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
];

pub(crate) type ResponseBody = BoxBody<Bytes, BoxError>;

/// Where requests go.
#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub(crate) socket: PathBuf,
    pub(crate) store: Store,
}

/// The forwarder of one client connection; it keeps one backend connection alive beside it.
pub(crate) struct Proxy {
    backend: Arc<Backend>,
    peer: HeaderValue,
    realm: Option<HeaderValue>,
    sender: Mutex<Option<SendRequest<Incoming>>>,
}

impl Proxy {
    /// `identity` is the appraiser's JSON; the backend gets it as unpadded Base64 (RFC 4648 5).
    pub(crate) fn new(backend: Arc<Backend>, peer: &str, identity: Option<&str>) -> Self {
        let header = |text: &str| {
            HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
        };
        Self {
            backend,
            peer: header(peer),
            realm: identity.map(|json| header(&URL_SAFE_NO_PAD.encode(json))),
            sender: Mutex::new(None),
        }
    }

    /// Answer one request. Never fails: trouble with the backend becomes 502.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let head = request.method() == Method::HEAD;
        match self.forward(request).await {
            Ok(response) => response,
            Err(_) => bad_gateway(head),
        }
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, BoxError> {
        let target = request
            .uri()
            .path_and_query()
            .map_or("/", |value| value.as_str())
            .to_string();
        *request.uri_mut() = target.parse::<Uri>()?;
        *request.version_mut() = hyper::Version::HTTP_11;
        self.set_headers(request.headers_mut());
        let mut held = self.sender.lock().await;
        let mut sender = match held.take() {
            Some(open) if open.is_ready() => open,
            _ => connect(&self.backend.socket).await?,
        };
        let response = sender.send_request(request).await?;
        *held = Some(sender);
        drop(held);
        self.finish(response).await
    }

    fn set_headers(&self, headers: &mut HeaderMap) {
        strip(headers);
        headers.insert(PEER, self.peer.clone());
        if let Some(realm) = &self.realm {
            headers.insert(REALM, realm.clone());
        }
        headers
            .entry(HOST)
            .or_insert_with(|| HeaderValue::from_static("registry"));
    }

    async fn finish(
        &self,
        response: Response<Incoming>,
    ) -> Result<Response<ResponseBody>, BoxError> {
        let (mut parts, body) = response.into_parts();
        let file = parts.headers.remove(SENDFILE);
        let offset = number(&parts.headers, SENDFILE_OFFSET);
        let length = number(&parts.headers, SENDFILE_LENGTH);
        strip(&mut parts.headers);
        let Some(file) = file else {
            return Ok(Response::from_parts(
                parts,
                body.map_err(Into::into).boxed(),
            ));
        };
        drain(body).await?;
        let (offset, length) = offset
            .zip(length)
            .ok_or("the backend named a file without offset and length")?;
        let path = PathBuf::from(std::str::from_utf8(file.as_bytes())?);
        let body = self.backend.store.body(path, offset, length).await?;
        parts.headers.remove(TRANSFER_ENCODING);
        parts
            .headers
            .insert(CONTENT_LENGTH, HeaderValue::from(length));
        Ok(Response::from_parts(
            parts,
            body.map_err(Into::into).boxed(),
        ))
    }
}

/// Read a short body to its end, so that the backend connection can be used again.
async fn drain(mut body: Incoming) -> Result<(), BoxError> {
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok(())
}

async fn connect(socket: &PathBuf) -> Result<SendRequest<Incoming>, BoxError> {
    let stream = UnixStream::connect(socket).await?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // A failure shows at the sender's side as a failed request.
        let _ = connection.await;
    });
    Ok(sender)
}

/// Remove what concerns one hop only, and every private header, also when it is spelled with underscores.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let doomed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let text = name.as_str();
            HOP_BY_HOP.contains(&text)
                || text.replace('_', "-").starts_with(PRIVATE_PREFIX)
                || (text != "content-length"
                    && text != "transfer-encoding"
                    && named.iter().any(|other| other == text))
        })
        .cloned()
        .collect();
    for name in doomed {
        headers.remove(name);
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

fn bad_gateway(head: bool) -> Response<ResponseBody> {
    let text: &[u8] = br#"{"errors":[]}"#;
    let body = if head {
        Bytes::new()
    } else {
        Bytes::from_static(text)
    };
    let mut response = Response::new(Full::new(body).map_err(|never| match never {}).boxed());
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_headers_are_stripped() {
        let mut headers = HeaderMap::new();
        for name in [
            "x-islet-realm",
            "x-islet-peer",
            "x_islet_realm",
            "x-islet_peer",
            "x-islet-anything",
            "te",
        ] {
            headers.insert(
                HeaderName::from_static(name),
                HeaderValue::from_static("forged"),
            );
        }
        headers.insert("accept", HeaderValue::from_static("*/*"));
        headers.insert("x-private", HeaderValue::from_static("1"));
        headers.insert(
            "connection",
            HeaderValue::from_static("X-Private, content-length"),
        );
        headers.insert("content-length", HeaderValue::from_static("3"));
        strip(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length"]);
    }
}
