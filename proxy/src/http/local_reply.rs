//! Responses made here: errors, redirects, direct responses. gRPC requests get theirs as a gRPC status.

use super::exchange::Exchange;
use super::names;
use crate::access_log::Flag;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use std::borrow::Cow;
use std::sync::atomic::Ordering;

/// A reply to be sent in place of an endpoint's response.
pub(super) struct Reply {
    pub status: StatusCode,
    pub body: Bytes,
    pub details: Cow<'static, str>,
    pub flag: Option<Flag>,
    /// Boxed: replies with any are rare, and results that may be a reply are many.
    pub headers: Option<Box<HeaderMap>>,
    /// The connection ends with this reply.
    pub close: bool,
    /// HTTP/2: the stream is reset in place of it.
    pub reset: bool,
}

impl Reply {
    pub fn new(status: StatusCode, body: impl Into<Bytes>, details: impl Into<Cow<'static, str>>) -> Reply {
        Reply {
            status,
            body: body.into(),
            details: details.into(),
            flag: None,
            headers: None,
            close: false,
            reset: false,
        }
    }

    /// The reply to what is no HTTP/1, and its count.
    pub fn codec_error(exchange: &Exchange, status: StatusCode, details: &'static str) -> Reply {
        exchange.down.manager.stats.count.downstream_cx_protocol_error.inc();
        let reason = status.canonical_reason().unwrap_or_default();
        Reply::new(status, reason, details).flagged(Flag::DownstreamProtocolError).closing()
    }

    pub fn flagged(mut self, flag: Flag) -> Reply {
        self.flag = Some(flag);
        self
    }

    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Reply {
        self.headers.get_or_insert_default().insert(name, value);
        self
    }

    pub fn with_headers(mut self, headers: HeaderMap) -> Reply {
        self.headers = Some(Box::new(headers));
        self
    }

    pub fn closing(mut self) -> Reply {
        self.close = true;
        self
    }

    pub fn resetting(mut self) -> Reply {
        self.reset = true;
        self
    }

    /// The response, and the body to be sent with it.
    pub fn into_response(self, exchange: &mut Exchange) -> (Response<()>, Bytes) {
        exchange.fail(self.flag, self.details);
        let mut response = Response::new(());
        let is_error = self.status.is_client_error() || self.status.is_server_error();
        let mut body = self.body;
        exchange.local_body = match std::str::from_utf8(&body) {
            Ok(text) if is_error && !exchange.down.manager.logs.is_empty() => Cow::Owned(text.to_owned()),
            _ => Cow::Borrowed(""),
        };
        let headers = response.headers_mut();
        headers.reserve(8);
        if exchange.grpc && is_error {
            body = grpc_form(headers, self.status, &body, exchange);
        } else {
            *response.status_mut() = self.status;
            let headers = response.headers_mut();
            let bodiless = matches!(self.status.as_u16(), 204 | 304);
            if !body.is_empty() && !bodiless {
                headers.insert(header::CONTENT_LENGTH, names::number(body.len() as u64));
                headers.insert(header::CONTENT_TYPE, names::TEXT_PLAIN);
            } else if !exchange.down.http2 && !bodiless {
                headers.insert(header::CONTENT_LENGTH, names::number(0));
            }
        }
        if let Some(headers) = self.headers {
            response.headers_mut().extend(*headers);
        }
        // after a bad request nothing on the connection is trusted
        if (self.close || self.status == StatusCode::BAD_REQUEST) && !exchange.down.http2 {
            response.headers_mut().insert(header::CONNECTION, names::CLOSE);
            exchange.down.wire.last_word.store(true, Ordering::Relaxed);
        }
        if exchange.method == Some(Method::HEAD) {
            body = Bytes::new();
        }
        (response, body)
    }
}

/// Turns an error into a gRPC response that is all headers; returns its (empty) body.
fn grpc_form(headers: &mut HeaderMap, status: StatusCode, body: &[u8], exchange: &mut Exchange) -> Bytes {
    let code = grpc_code(status);
    exchange.grpc_status = Some(code);
    headers.insert(header::CONTENT_TYPE, names::APPLICATION_GRPC);
    headers.insert(names::GRPC_STATUS, names::number(u64::from(code)));
    if !body.is_empty()
        && let Ok(message) = HeaderValue::from_maybe_shared(Bytes::from(percent_encode(body)))
    {
        headers.insert(names::GRPC_MESSAGE, message);
    }
    if !exchange.down.http2 {
        headers.insert(header::CONTENT_LENGTH, names::number(0));
    }
    Bytes::new()
}

/// gRPC's own mapping of HTTP statuses (grpc/doc/http-grpc-status-mapping.md).
fn grpc_code(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// `grpc-message`: printable ASCII but `%` stays (gRPC over HTTP/2, "Responses").
fn percent_encode(message: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(message.len());
    for b in message {
        match b {
            0x20..=0x7e if *b != b'%' => out.push(*b),
            _ => out.extend([b'%', DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_messages_are_printable() {
        assert_eq!(percent_encode("a b%\né".as_bytes()), b"a b%25%0A%C3%A9");
        assert_eq!(grpc_code(StatusCode::SERVICE_UNAVAILABLE), 14);
        assert_eq!(grpc_code(StatusCode::IM_A_TEAPOT), 2);
    }
}
