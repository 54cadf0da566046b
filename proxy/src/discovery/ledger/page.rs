//! `/ledger`: every resource with what became of it, as text or as JSON.

use super::{Api, Id, Ledger, Record, State};
use crate::admin::LedgerQuery;
use crate::admin::write_json;
use crate::discovery::dump::{name_matcher, timestamp};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::time::SystemTime;

const HEADINGS: [&str; 8] = ["TYPE", "NAME", "STATE", "RUNNING", "OFFERED", "RUNNING SINCE", "LAST OFFER", "SOURCE"];

impl Ledger {
    /// The page.
    ///
    /// # Errors
    /// A bad query, for a 400 reply.
    pub fn page(&self, query: &LedgerQuery) -> Result<String, String> {
        let api = match &query.api {
            Some(name) => Some(Api::ALL.into_iter().find(|api| api.name() == name).ok_or_else(|| {
                let known = Api::ALL.map(Api::name).join(", ");
                format!("type is '{name}', expected one of {known}\n")
            })?),
            None => None,
        };
        let state = match &query.state {
            Some(name) => Some(State::ALL.into_iter().find(|state| state.name() == name).ok_or_else(|| {
                let known = State::ALL.map(State::name).join(", ");
                format!("state is '{name}', expected one of {known}\n")
            })?),
            None => None,
        };
        let names = name_matcher(query.name_regex.as_deref())?;
        let wanted = Api::ALL.into_iter().filter(|one| api.is_none_or(|api| api == *one));
        let rows = wanted.flat_map(|api| {
            let records = self.of_api(api).map(move |(id, record)| (api, id, record));
            let names = names.as_ref();
            records.filter(move |(_, id, record)| {
                state.is_none_or(|state| record.state() == state) && names.is_none_or(|r| r.is_match(&id.name))
            })
        });
        Ok(if query.json { json_page(rows) } else { text_page(&rows.collect::<Vec<_>>()) })
    }
}

fn text_page(rows: &[(Api, &Id, &Record)]) -> String {
    let cells: Vec<[String; 8]> = rows.iter().map(|(api, id, record)| cells(*api, id, record)).collect();
    let mut widths = HEADINGS.map(str::len);
    for row in &cells {
        widths.iter_mut().zip(row).for_each(|(width, cell)| *width = (*width).max(cell.chars().count()));
    }
    let line = |page: &mut String, cells: &[&str; 8]| {
        for (cell, width) in cells.iter().zip(widths) {
            let _ = write!(page, "{cell:width$}  ");
        }
        page.truncate(page.trim_end_matches(' ').len());
        page.push('\n');
    };
    let mut page = String::new();
    line(&mut page, &HEADINGS);
    for (cells, (_, _, record)) in cells.iter().zip(rows) {
        line(&mut page, &cells.each_ref().map(String::as_str));
        if let Some(refusal) = record.refusal() {
            let _ = writeln!(page, "      refused {}: {}", timestamp(refusal.at), plain(&refusal.detail));
        }
        if let Some(failure) = record.failure() {
            let _ = writeln!(page, "      source failed {}: {}", timestamp(failure.at), plain(&failure.detail));
        }
        if let Some(draining) = record.draining() {
            let _ = writeln!(page, "      draining: {}", version(record, Some(&draining.version)));
        }
        if record.timed_out {
            page.push_str("      initial fetch timed out\n");
        }
        for warning in record.warnings.iter().flat_map(|set| set.iter()) {
            let _ = writeln!(page, "      warning: {}", plain(warning));
        }
    }
    page
}

fn cells(api: Api, id: &Id, record: &Record) -> [String; 8] {
    let time = |time: Option<SystemTime>| time.map_or_else(|| "-".to_owned(), timestamp);
    [
        api.name().to_owned(),
        plain(&id.name),
        record.state().name().to_owned(),
        version(record, record.running.as_ref().map(|config| &*config.version)),
        version(record, record.version_offered().map(|version| &**version)),
        time(record.since),
        time(record.offered_at().or(record.requested)),
        plain(&id.source),
    ]
}

fn version(record: &Record, version: Option<&str>) -> String {
    match version {
        Some("") if record.is_static => "(static)".to_owned(),
        Some("") | None => "-".to_owned(),
        Some(version) => plain(version),
    }
}

/// Names and texts come from outside: none of them may look like a line of its own.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

fn json_page<'a>(rows: impl Iterator<Item = (Api, &'a Id, &'a Record)>) -> String {
    let mut out = String::from("{\n \"resources\": [");
    let start = out.len();
    for (api, id, record) in rows {
        out.push_str(if out.len() == start { "\n  " } else { ",\n  " });
        write_json(&mut out, &json_row(api, id, record), 2);
    }
    out.push_str(if out.len() == start { "]\n}\n" } else { "\n ]\n}\n" });
    out
}

fn json_row(api: Api, id: &Id, record: &Record) -> Value {
    let mut row = Map::new();
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            row.insert(key.to_owned(), value);
        }
    };
    let version = |version: &str| (!version.is_empty()).then(|| version.into());
    let time = |time: Option<SystemTime>| time.map(|time| timestamp(time).into());
    let at = |at, details: &str| json!({"at": timestamp(at), "details": details});
    set("type", Some(api.name().into()));
    set("name", Some((*id.name).into()));
    set("source", Some((*id.source).into()));
    set("state", Some(record.state().name().into()));
    set("static", record.is_static.then(|| true.into()));
    set("version_running", record.running.as_ref().and_then(|config| version(&config.version)));
    set("version_offered", record.version_offered().and_then(|offered| version(offered)));
    set("requested", time(record.requested));
    set("offered", time(record.offered_at()));
    set("running_since", time(record.since));
    set("timed_out", record.timed_out.then(|| true.into()));
    set("error", record.refusal().map(|refusal| at(refusal.at, &refusal.detail)));
    set("version_draining", record.draining().and_then(|config| version(&config.version)));
    set("source_error", record.failure().map(|failure| at(failure.at, &failure.detail)));
    set("warnings", record.warnings.as_ref().map(|set| set.iter().map(|text| Value::from(&**text)).collect()));
    row.into()
}
