//! A control plane's resource: the first byte chooses the type, the rest is the message. Nothing that stands in it may
//! panic, hang, or take much more memory than it has bytes.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use outrigger::config;
use outrigger_fuzz::{Limited, context, full_name, limited, mutate, split};
use xds_protos::Descriptors;

#[global_allocator]
static MEMORY: Limited = Limited;

fuzz_target!(init: {
    // What is made once and kept must not count against the input that happens to need it first.
    for message in xds_protos::table::Message::all() {
        let _ = Descriptors::shared().violations(message.name(), &[]);
    }
    for type_url in outrigger_fuzz::TYPES {
        let _ = config::decode(type_url, &[], &mut context());
    }
}, |input: &[u8]| {
    let Some((type_url, body)) = split(input) else { return };
    limited(input.len(), || {
        let descriptors = Descriptors::shared();
        let inspected = descriptors.inspect(full_name(type_url), body);
        let violations = descriptors.violations(full_name(type_url), body);
        let decoded = config::decode(type_url, body, &mut context());
        if decoded.is_ok() {
            assert!(inspected.is_some(), "what converts is a message");
            assert!(violations.is_some(), "what converts is a message");
        }
    });
});

fuzz_mutator!(|data: &mut [u8], size: usize, limit: usize, seed: u32| {
    let bytes = &data[..size];
    match split(bytes) {
        Some((type_url, body)) if seed % 4 != 0 => {
            let changed = mutate(full_name(type_url), body, seed);
            // Too long: what there was stays, but for the fuzzer's own change.
            if changed.len() < limit {
                data[1..=changed.len()].copy_from_slice(&changed);
                return 1 + changed.len();
            }
            fuzzer_mutate(data, size, limit)
        }
        _ => fuzzer_mutate(data, size, limit),
    }
});
