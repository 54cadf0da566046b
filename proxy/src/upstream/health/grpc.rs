//! gRPC health checks: `grpc.health.v1.Health/Check`.

use super::Kept;
use super::connection::HttpConnection;
use super::state::{Failure, Verdict};
use super::target::Target;
use crate::config::model::GrpcCheck;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use prost::Message;

const PATH: PathAndQuery = PathAndQuery::from_static("/grpc.health.v1.Health/Check");

/// The response is one message of one number; more than this is no answer to the question.
const MAX_RESPONSE: usize = 4096;

/// Length of the prefix of a gRPC message: a flag and four bytes of length.
const PREFIX: usize = 5;

const UNHEALTHY: Verdict = Verdict::Fail(Failure::Unhealthy { excluded: false });

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: i32 = 1;

/// One check, unbounded in time: the caller sets the bound.
pub(super) async fn run(check: &GrpcCheck, target: &Target, kept: Option<Kept>) -> (Verdict, Option<Kept>) {
    const BROKEN: (Verdict, Option<Kept>) = (Verdict::Fail(Failure::Network), None);
    let mut connection = match HttpConnection::take(kept).await {
        Some(connection) => connection,
        None => match HttpConnection::open(target, true).await {
            Ok(connection) => connection,
            Err(_) => return BROKEN,
        },
    };
    let Ok(response) = connection.send(request(check, target)).await else { return BROKEN };
    let (head, body) = response.into_parts();
    let is_grpc = head.headers.get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    if head.status != StatusCode::OK || !is_grpc {
        return (UNHEALTHY, Some(Kept::Http(connection)));
    }
    let Some((message, trailers)) = read(body).await else { return BROKEN };
    // a response without messages has its status in the only headers
    let passed = is_ok(trailers.as_ref().unwrap_or(&head.headers)) && is_serving(&message);
    (if passed { Verdict::Pass { degraded: false } } else { UNHEALTHY }, Some(Kept::Http(connection)))
}

fn request(check: &GrpcCheck, target: &Target) -> Request<Full<Bytes>> {
    let message = HealthCheckRequest { service: check.service.clone() };
    let mut body = BytesMut::with_capacity(PREFIX + message.encoded_len());
    body.put_u8(0);
    // the name comes from configuration, which is far smaller than 4 GiB
    body.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    // a BytesMut grows as needed
    let _ = message.encode(&mut body);
    let mut request = Request::new(Full::new(body.freeze()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = target.uri(target.host(&check.authority), PATH);
    *request.headers_mut() = check.headers.clone();
    request
}

async fn read(mut body: Incoming) -> Option<(BytesMut, Option<HeaderMap>)> {
    let mut message = BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame.ok()?.into_data() {
            Ok(data) if message.len() + data.len() > MAX_RESPONSE => return None,
            Ok(data) => message.extend_from_slice(&data),
            Err(frame) => return Some((message, frame.into_trailers().ok())),
        }
    }
    Some((message, None))
}

fn is_ok(headers: &HeaderMap) -> bool {
    headers.get("grpc-status").is_some_and(|status| status == "0")
}

fn is_serving(bytes: &[u8]) -> bool {
    let Some((prefix, message)) = bytes.split_first_chunk::<PREFIX>() else { return false };
    let [flag, length @ ..] = *prefix;
    let is_whole = u32::from_be_bytes(length) as usize == message.len();
    flag == 0 && is_whole && HealthCheckResponse::decode(message).is_ok_and(|m| m.status == SERVING)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_message_that_says_serving_passes() {
        assert!(is_serving(&[0, 0, 0, 0, 2, 8, 1]));
        let others: [&[u8]; 7] = [
            &[],
            &[0, 0, 0, 0],
            &[0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 2, 8, 2],
            &[1, 0, 0, 0, 2, 8, 1],
            &[0, 0, 0, 0, 3, 8, 1],
            &[0, 0, 0, 0, 1, 8, 1],
        ];
        for bytes in others {
            assert!(!is_serving(bytes), "{bytes:?}");
        }
    }
}
