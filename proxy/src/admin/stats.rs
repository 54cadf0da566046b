//! `/stats` and `/stats/prometheus`.

use super::pages::html;
use super::query::{Target, filter};
use super::reply::Reply;
use super::view::AdminSource;
use crate::stats::{Buckets, Query};
use http::StatusCode;

pub(super) fn stats(source: &dyn AdminSource, target: &Target) -> Reply {
    let format = target.value("format").unwrap_or("text");
    if format == "prometheus" {
        return prometheus(source, target);
    }
    let query = match query(target) {
        Ok(query) => query,
        Err(message) => return Reply::error(StatusCode::BAD_REQUEST, message),
    };
    source.refresh_stats();
    let registry = source.registry();
    match format {
        "text" => Reply::text(registry.text(&query)),
        "json" => Reply::compact_json(registry.json(&query)),
        "html" | "active-html" => Reply::html(format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Outrigger stats</title></head>\n\
             <body>\n<pre>\n{}</pre>\n</body>\n</html>\n",
            html(&registry.text(&query))
        )),
        _ => Reply::error(StatusCode::BAD_REQUEST, "usage: /stats?format=(html|active-html|json|prometheus|text)\n\n"),
    }
}

pub(super) fn prometheus(source: &dyn AdminSource, target: &Target) -> Reply {
    match query(target) {
        Err(message) => Reply::error(StatusCode::BAD_REQUEST, message),
        Ok(query) if matches!(query.buckets, Buckets::Disjoint | Buckets::Detailed) => {
            Reply::error(StatusCode::BAD_REQUEST, "unsupported prometheus histogram bucket mode")
        }
        Ok(query) => {
            source.refresh_stats();
            Reply::text(source.registry().prometheus(&query))
        }
    }
}

fn query(target: &Target) -> Result<Query, String> {
    let filter = target.value("filter").map(filter);
    let mut query = Query::default();
    query.set_type(target.get("type").unwrap_or(""))?;
    query.used_only = target.has("usedonly");
    query.filter = filter.transpose()?;
    query.invert_filter = target.has("invert_filter");
    query.buckets = Buckets::parse(target.get("histogram_buckets").unwrap_or(""))?;
    query.text_readouts = target.has("text_readouts");
    Ok(query)
}
