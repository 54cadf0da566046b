//! Records as the messages of `envoy.admin.v3`.

use super::super::ledger::{Api, Config, Record, State};
use super::mask::put;
use std::time::{SystemTime, UNIX_EPOCH};
use xds_protos::pb::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use xds_protos::pb::google::protobuf::{Any, Timestamp};

pub fn any(api: Api, config: &Config) -> Any {
    Any { type_url: api.type_url().as_str().to_owned(), value: config.bytes.to_vec() }
}

/// A resource of which there is nothing but the name, which every type has in its first field.
pub fn named(api: Api, name: &str) -> Any {
    let mut value = Vec::new();
    put(&mut value, 1, name.as_bytes());
    Any { type_url: api.type_url().as_str().to_owned(), value }
}

/// What runs, else its name: readers take it for granted that something stands there.
pub fn any_or_named(api: Api, name: &str, record: &Record) -> Any {
    record.running.as_ref().map_or_else(|| named(api, name), |config| any(api, config))
}

/// In milliseconds, as Envoy shows times.
pub fn time(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let nanos = since.subsec_millis() * 1_000_000;
    Timestamp { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: i32::try_from(nanos).unwrap_or(0) }
}

/// `error_state`: the last refusal, unless something good came after it.
pub fn failure(api: Api, record: &Record) -> Option<UpdateFailureState> {
    let refusal = record.refusal()?;
    let type_url = api.type_url().as_str().to_owned();
    // nothing is kept of what was no resource of this type at all
    let given = (!refusal.bytes.is_empty()).then(|| Any { type_url, value: refusal.bytes.to_vec() });
    Some(UpdateFailureState {
        failed_configuration: given,
        last_update_attempt: Some(time(refusal.at)),
        details: refusal.detail.clone(),
        version_info: refusal.version.to_string(),
    })
}

/// `client_status`.
pub fn status(record: &Record) -> i32 {
    let status = match record.state() {
        State::Rejected => ClientResourceStatus::Nacked,
        State::DoesNotExist => ClientResourceStatus::DoesNotExist,
        State::Requested if record.timed_out => ClientResourceStatus::Timeout,
        State::Requested => ClientResourceStatus::Requested,
        State::Warming | State::Running | State::Draining => ClientResourceStatus::Acked,
    };
    status as i32
}
