//! HTTP health checks: one request, a status, perhaps a header and some bytes of the body.

use super::connection::HttpConnection;
use super::state::{Failure, Verdict};
use super::target::Target;
use super::{Kept, contains_in_order};
use crate::config::model::HttpCheck;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderName, HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

const DEGRADED: HeaderName = HeaderName::from_static("x-envoy-degraded");
const CHECKED_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-upstream-healthchecked-cluster");
/// By this header a response, to a check or to ordinary traffic, says that its endpoint is to be left alone.
pub const IMMEDIATE_FAIL: HeaderName = HeaderName::from_static("x-envoy-immediate-health-check-fail");

/// One check, unbounded in time: the caller sets the bound.
pub(super) async fn run(check: &HttpCheck, target: &Target, kept: Option<Kept>) -> (Verdict, Option<Kept>) {
    const BROKEN: (Verdict, Option<Kept>) = (Verdict::Fail(Failure::Network), None);
    let mut connection = match HttpConnection::take(kept).await {
        Some(connection) => connection,
        None => match HttpConnection::open(target, check.http2).await {
            Ok(connection) => connection,
            Err(_) => return BROKEN,
        },
    };
    let Ok(response) = connection.send(request(check, target)).await else { return BROKEN };
    let (head, body) = response.into_parts();
    let Some(start) = read(body, if check.receive.is_empty() { 0 } else { check.body_limit }).await else {
        return BROKEN;
    };
    let verdict = judge(check, target, &head, &start);
    (verdict, Some(Kept::Http(connection)))
}

fn request(check: &HttpCheck, target: &Target) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(check.body.clone()));
    *request.method_mut() = check.method.clone();
    let host = target.host(&check.host);
    if check.http2 {
        *request.uri_mut() = target.uri(host, check.path.clone());
    } else {
        *request.uri_mut() = Uri::from(check.path.clone());
        if let Ok(host) = HeaderValue::from_str(host) {
            request.headers_mut().insert(HOST, host);
        }
    }
    request.headers_mut().extend(check.headers.clone());
    if !check.body.is_empty() {
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(check.body.len()));
    }
    request
}

/// Reads a body to its end and keeps the first `limit` bytes of it; `None`: it broke off.
async fn read(mut body: Incoming, limit: usize) -> Option<BytesMut> {
    let mut start = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.ok()?.into_data() {
            let room = (limit - start.len()).min(data.len());
            start.extend_from_slice(&data[..room]);
        }
    }
    Some(start)
}

fn judge(check: &HttpCheck, target: &Target, head: &http::response::Parts, body: &[u8]) -> Verdict {
    let status = head.status.as_u16();
    if !check.expected.iter().any(|range| range.contains(&status)) {
        let excluded = head.headers.contains_key(IMMEDIATE_FAIL);
        return Verdict::Fail(match check.retriable.iter().any(|range| range.contains(&status)) {
            true => Failure::Retriable { excluded },
            false => Failure::Unhealthy { excluded },
        });
    }
    if let Some(name) = &check.service_name {
        target.health.stats.verify_cluster.inc();
        let found = head.headers.get(CHECKED_CLUSTER).map_or(&[][..], HeaderValue::as_bytes);
        if !name.matches(found) {
            return Verdict::Fail(Failure::Unhealthy { excluded: false });
        }
    }
    if !contains_in_order(&check.receive, body) {
        return Verdict::Fail(Failure::Unhealthy { excluded: false });
    }
    Verdict::Pass { degraded: head.headers.contains_key(DEGRADED) }
}
