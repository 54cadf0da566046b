//! Makes the first corpora: `seeds <folder> <file.json>...` takes bootstraps, configuration dumps and lists of resources
//! apart into `<folder>/resource` and `<folder>/yaml`.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::Path;

use outrigger_fuzz::{BOOTSTRAP, TYPES, full_name};
use serde_json::Value;
use xds_protos::{Descriptors, Format, ParseOptions};

/// Larger inputs only slow the fuzzer down.
const LARGEST: usize = 64 << 10;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().expect("a folder for the corpora");
    let (resource, yaml) = (Path::new(&folder).join("resource"), Path::new(&folder).join("yaml"));
    for folder in [&resource, &yaml] {
        std::fs::create_dir_all(folder).expect("the folder can be made");
    }
    for file in arguments {
        let text = std::fs::read_to_string(&file).expect("a file that can be read");
        let json: Value = serde_json::from_str(&text).expect("JSON");
        if json.get("static_resources").is_some() || json.get("admin").is_some() {
            write(&yaml, text.as_bytes());
        }
        resources(&json, &resource, &yaml);
    }
}

/// Writes whatever looks like a resource, at any depth.
fn resources(json: &Value, folder: &Path, yaml: &Path) {
    match json {
        Value::Array(items) => items.iter().for_each(|item| resources(item, folder, yaml)),
        Value::Object(members) => {
            for (at, type_url) in (0u8..).zip(TYPES) {
                let named = members.get("@type").and_then(Value::as_str).is_some_and(|name| name == type_url);
                // Lists of one type have no "@type"; these fields tell.
                let telling = ["load_assignment", "filter_chains", "virtual_hosts"][..].get(usize::from(at));
                if named || telling.is_some_and(|field| members.contains_key(*field)) {
                    let mut members = members.clone();
                    members.remove("@type");
                    let text = Value::Object(members).to_string();
                    let options = ParseOptions { allow_unknown_fields: true, file: None };
                    if let Ok(parsed) = Descriptors::shared().parse(full_name(type_url), &text, Format::Json, options) {
                        write(folder, &[&[at], parsed.bytes.as_slice()].concat());
                    }
                    if let Some(field) = ["clusters", "listeners"].get(usize::from(at)) {
                        let text = format!("{{\"static_resources\": {{\"{field}\": [{text}]}}}}");
                        let known = Descriptors::shared().parse(BOOTSTRAP, &text, Format::Json, options).is_ok();
                        known.then(|| write(yaml, text.as_bytes()));
                    }
                }
            }
            members.values().for_each(|member| resources(member, folder, yaml));
        }
        _ => {}
    }
}

fn write(folder: &Path, bytes: &[u8]) {
    if bytes.len() <= LARGEST {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        std::fs::write(folder.join(format!("{:016x}", hasher.finish())), bytes).expect("the folder can be written");
    }
}
