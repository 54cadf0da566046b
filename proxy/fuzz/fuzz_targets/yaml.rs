//! A bootstrap file: any text, as YAML and as JSON. Nothing that stands in it may panic, hang, or take much more memory
//! than it has bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::config;
use outrigger_fuzz::{BOOTSTRAP, Limited, context, limited};
use xds_protos::{Descriptors, Format, ParseOptions, Style, to_pretty};

#[global_allocator]
static MEMORY: Limited = Limited;

fuzz_target!(init: {
    for message in xds_protos::table::Message::all() {
        let _ = Descriptors::shared().violations(message.name(), &[]);
    }
    let _ = config::bootstrap(&[], &mut context());
}, |input: &str| {
    limited(input.len(), || {
        let descriptors = Descriptors::shared();
        for format in [Format::Yaml, Format::Json] {
            let options = ParseOptions { allow_unknown_fields: true, file: None };
            let Ok(parsed) = descriptors.parse(BOOTSTRAP, input, format, options) else { continue };
            assert!(descriptors.inspect(BOOTSTRAP, &parsed.bytes).is_some(), "what is written is a message");
            assert!(descriptors.violations(BOOTSTRAP, &parsed.bytes).is_some(), "what is written is a message");
            let _ = config::bootstrap(&parsed.bytes, &mut context());
            // What is printed is read again as the same.
            let printed = descriptors.to_json(BOOTSTRAP, &parsed.bytes, Style::default());
            let options = ParseOptions::default();
            let again = descriptors.parse(BOOTSTRAP, &to_pretty(&printed), Format::Json, options);
            let again = again.unwrap_or_else(|errors| panic!("{}: {printed}", errors[0]));
            assert_eq!(descriptors.to_json(BOOTSTRAP, &again.bytes, Style::default()), printed);
        }
    });
});
