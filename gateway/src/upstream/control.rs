//! Calls to a provider beside generation: files and batches. Whole bodies both ways, on a connection of their own.

use super::{OpenError, Opened, Transport, Upstream, exchange, exchange_http1, write_field};
use bytes::Bytes;
use pingora_http::RequestHeader;
use tokio::time::timeout;

/// One such call.
pub(crate) struct Control {
    pub(crate) method: &'static str,
    pub(crate) root: Root,
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

impl Control {
    pub(crate) fn get(path: String) -> Self {
        Self {
            method: "GET",
            root: Root::Base,
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
            path,
            content_type: Some("application/json".into()),
            fields: Vec::new(),
            body,
        }
    }
}

impl Upstream {
    /// Makes the call and reads the answer, up to `limit` bytes of it.
    pub(crate) async fn control(&self, call: &Control, limit: usize) -> Result<(u16, Bytes), OpenError> {
        let mut opened = self.control_open(call).await?;
        let status = opened.status();
        let body = timeout(self.settings.first_byte_timeout, opened.read_all(limit)).await;
        let body = body
            .map_err(|_| OpenError::FirstByteTimeout)?
            .map_err(OpenError::Exchange)?;
        self.release(opened).await;
        Ok((status, body))
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
            if name != "content-type" {
                write_field(&mut head, name.as_str(), value.as_bytes());
            }
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
            if name != "content-type" {
                head.insert_header(name.clone(), value.clone())?;
            }
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
