//! Calls to a provider beside generation: files and batches. Whole bodies both ways, on a connection of their own.

use super::{OpenError, Opened, Transport, Upstream, exchange, exchange_http1, write_field};
use bytes::Bytes;
use pingora_http::RequestHeader;
use tokio::time::timeout;

const GOOGLE_KEY: &str = "x-goog-api-key";

/// One such call.
pub(crate) struct Control {
    pub(crate) method: &'static str,
    pub(crate) root: Root,
    pub(crate) authority: Authority,
    /// Behind the root.
    pub(crate) path: String,
    pub(crate) content_type: Option<String>,
    /// Further fields of the head.
    pub(crate) fields: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

/// Where a path begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Root {
    /// At the provider's base URL.
    Base,
    /// At its origin, without the base URL's path.
    Origin,
}

/// How a call says whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Authority {
    /// As every call of the provider's dialect.
    Usual,
    /// By `x-goog-api-key`: a key in `authorization` is taken for a token there, and refused.
    Google,
}

impl Control {
    pub(crate) fn get(path: String) -> Self {
        Self {
            method: "GET",
            root: Root::Base,
            authority: Authority::Usual,
            path,
            content_type: None,
            fields: Vec::new(),
            body: Bytes::new(),
        }
    }

    pub(crate) fn post(path: String, body: Bytes) -> Self {
        Self {
            method: "POST",
            root: Root::Base,
            authority: Authority::Usual,
            path,
            content_type: Some("application/json".into()),
            fields: Vec::new(),
            body,
        }
    }

    /// A field that every call to the provider has goes with this one too.
    fn keeps(&self, name: &str) -> bool {
        name != "content-type" && (self.authority == Authority::Usual || name != "authorization")
    }
}

/// The whole of an answer.
pub(crate) struct Told {
    pub(crate) status: u16,
    pub(crate) fields: http::HeaderMap,
    pub(crate) body: Bytes,
}

impl Upstream {
    fn google_key(&self, call: &Control) -> Option<&str> {
        let credential = self.settings.credential.as_ref()?;
        (call.authority == Authority::Google).then(|| credential.expose())
    }

    /// Makes the call and reads the answer, up to `limit` bytes of it.
    pub(crate) async fn control(&self, call: &Control, limit: usize) -> Result<(u16, Bytes), OpenError> {
        let told = self.control_told(call, limit).await?;
        Ok((told.status, told.body))
    }

    /// The same, with the head's fields.
    pub(crate) async fn control_told(&self, call: &Control, limit: usize) -> Result<Told, OpenError> {
        let mut opened = self.control_open(call).await?;
        let status = opened.status();
        let head = opened.session.response_header();
        let fields = head.map_or_else(http::HeaderMap::new, |head| head.headers.clone());
        let body = timeout(self.settings.first_byte_timeout, opened.read_all(limit)).await;
        let body = body
            .map_err(|_| OpenError::FirstByteTimeout)?
            .map_err(OpenError::Exchange)?;
        self.release(opened).await;
        Ok(Told { status, fields, body })
    }

    async fn control_open(&self, call: &Control) -> Result<Opened, OpenError> {
        let peer = self.peer().await?;
        let exchanged = match &self.connector {
            Transport::Http1(http1) => {
                let stream = self.connect(&http1.connector, &peer).await?;
                let head = self.control_bytes(call);
                timeout(
                    self.settings.first_byte_timeout,
                    exchange_http1(stream, head, call.body.clone()),
                )
                .await
            }
            Transport::Http2(connector) => {
                let connected = connector.get_http_session(&*peer).await;
                let (session, _) = connected.map_err(OpenError::Connect)?;
                let head = self.control_head(call).map_err(OpenError::Exchange)?;
                timeout(
                    self.settings.first_byte_timeout,
                    exchange(session, head, call.body.clone()),
                )
                .await
            }
        };
        let session = exchanged
            .map_err(|_| OpenError::FirstByteTimeout)?
            .map_err(OpenError::Exchange)?;
        Ok(Opened { session, peer })
    }

    fn control_path(&self, call: &Control) -> String {
        let root = match call.root {
            Root::Base => self.settings.base.path.as_str(),
            Root::Origin => "",
        };
        [root, &call.path].concat()
    }

    fn control_bytes(&self, call: &Control) -> Vec<u8> {
        let mut head = Vec::with_capacity(512);
        let path = self.control_path(call);
        head.extend_from_slice(format!("{} {path} HTTP/1.1\r\n", call.method).as_bytes());
        for (name, value) in &self.template.headers {
            if call.keeps(name.as_str()) {
                write_field(&mut head, name.as_str(), value.as_bytes());
            }
        }
        if let Some(key) = self.google_key(call) {
            write_field(&mut head, GOOGLE_KEY, key.as_bytes());
        }
        for (name, value) in &call.fields {
            write_field(&mut head, name, value.as_bytes());
        }
        if let Some(kind) = &call.content_type {
            write_field(&mut head, "content-type", kind.as_bytes());
        }
        write_field(
            &mut head,
            "content-length",
            call.body.len().to_string().as_bytes(),
        );
        head.extend_from_slice(b"\r\n");
        head
    }

    fn control_head(&self, call: &Control) -> pingora_error::Result<Box<RequestHeader>> {
        let path = self.control_path(call);
        let mut head = Box::new(RequestHeader::build(call.method, path.as_bytes(), Some(16))?);
        for (name, value) in &self.template.headers {
            if call.keeps(name.as_str()) {
                head.insert_header(name.clone(), value.clone())?;
            }
        }
        if let Some(key) = self.google_key(call) {
            head.insert_header(GOOGLE_KEY, key)?;
        }
        for (name, value) in &call.fields {
            head.insert_header(*name, value.as_str())?;
        }
        if let Some(kind) = &call.content_type {
            head.insert_header("content-type", kind.as_str())?;
        }
        head.insert_header("content-length", call.body.len())?;
        Ok(head)
    }
}
