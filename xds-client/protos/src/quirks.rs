//! Which texts Envoy 1.40 takes and which it refuses, one by one: every row was put to `envoy --mode validate`.

use crate::{Descriptors, Format, LoadError, ParseOptions, Parsed, Style};

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

fn parse(text: &str, format: Format) -> Result<Parsed, Vec<LoadError>> {
    Descriptors::load().parse(BOOTSTRAP, text, format, ParseOptions::default())
}

fn taken(text: &str, format: Format) -> bool {
    parse(text, format).is_ok()
}

/// Every text is taken or refused as said.
fn check(format: Format, rows: &[(&str, bool)]) {
    for (text, expected) in rows {
        let found = parse(text, format);
        assert_eq!(found.is_ok(), *expected, "{text:?}: {:?}", found.err());
    }
}

/// The values of one field of a cluster, taken or refused as said.
fn check_field(format: Format, field: &str, taken_values: &[&str], refused: &[&str]) {
    let (open, close) = match field.split_once('{') {
        Some(_) => (field.to_owned(), "}".repeat(field.matches('{').count())),
        None => (format!("\"{field}\": "), String::new()),
    };
    for (values, expected) in [(taken_values, true), (refused, false)] {
        for value in values {
            let text =
                format!("{{\"static_resources\": {{\"clusters\": [{{\"name\": \"c\", {open}{value}{close}}}]}}}}");
            assert_eq!(taken(&text, format), expected, "{text}: {:?}", parse(&text, format).err());
        }
    }
}

#[test]
fn layout_of_yaml() {
    check(
        Format::Yaml,
        &[
            ("static_resources:\n\tclusters: []\n", false),
            ("static_resources:\n  clusters:\n\t- name: c\n", false),
            ("static_resources: {\tclusters: []\t}\n", true),
            ("static_resources:\t{}\n", true),
            ("node: {id: a}\nnode: {id: b}\n", true),
            ("node: &n {id: a}\nflags_path: *n\n", false),
            ("x: &n {id: a}\nnode: *n\n", false),
            ("!ignore x: &n {id: a}\nnode: *n\n", true),
            ("<<: {node: {id: a}}\n", false),
            ("node: {id: a}\n---\nnode: {idd: b}\n", true),
            ("---\nnode: {id: a}\n...\n", true),
            ("%YAML 1.2\n---\nnode: {id: a}\n", true),
            ("---\n---\nnode: {id: a}\n", false),
            ("", false),
            ("\n\n", false),
            ("# only a comment\n", false),
            ("---\n", false),
            ("null\n", false),
            ("[]\n", false),
            ("- node: {id: a}\n", false),
            ("abc\n", false),
            ("5\n", false),
            ("{}\n", true),
            ("\u{feff}node: {id: a}\n", true),
            ("node: {id: a}\r\nstatic_resources:\r\n  clusters: []\r\n", true),
            ("node:\r  id: a\r", true),
            ("5: x\n", false),
            ("? [a]\n: x\n", false),
            ("? {a: b}\n: x\n", false),
            ("node: {metadata: {5: x, true: y, ~: z, 1.5: w}}\n", true),
            ("node: {id: 'a'\n", false),
            ("node: {id: \"a\n  b\"}\n", true),
            ("node:\n  id: |\n    a\n    b\n", true),
            ("node: {id: a, cluster: b,}\n", true),
            ("node: {id: a,, cluster: b}\n", false),
            ("node: {id: *x}\n", false),
            ("node: {id: @x}\n", false),
            ("node: {id: a: b}\n", false),
            ("node: {id: a#b}\n", true),
            ("node: {id: a #b\n}\n", true),
            ("node: {id: !!str 5}\n", false),
            ("node: {id: ! 5}\n", true),
            ("node: {id: !!binary aGk=}\n", true),
            ("node: !!map {id: a}\n", true),
            ("node: {id: \"\\x41\\u00e4\\U0001F600\"}\n", true),
            ("node: {id: \"\\q\"}\n", false),
            ("node: {id: '', cluster: null}\n", true),
            ("node:\n  id:\n  cluster: a\n", true),
            ("node: null\n", true),
            ("static_resources: {clusters: {name: c}}\n", true),
        ],
    );
}

#[test]
fn layout_of_json() {
    check(
        Format::Json,
        &[
            ("{}", true),
            ("", false),
            ("  ", false),
            ("null", false),
            ("[]", false),
            ("{\"node\": {\"id\": \"a\",}}", true),
            ("{,}", false),
            ("{\"node\": {\"id\": \"a\",,}}", false),
            ("{\"static_resources\": {\"clusters\": [{\"name\":\"c\"},]}}", true),
            ("{\"static_resources\": {\"clusters\": [,]}}", false),
            ("// x\n{}", false),
            ("{} /* x */", false),
            ("{'node': {'id': 'a'}}", true),
            ("{node: {id: \"a\"}}", true),
            ("{node: {id: a}}", false),
            ("{\"node\": {\"id\": \"a\nb\"}}", true),
            ("{\"node\": {\"id\": \"\\ud83d\\ude00\"}}", true),
            ("{\"node\": {\"id\": \"\\ud83d\"}}", false),
            ("{\"node\": {\"id\": \"\\q\"}}", false),
            ("{\"node\": {\"id\": 5}}", false),
            ("{\"node\": {\"id\": null}}", true),
            ("{\"node\": {\"id\": \"a\"}} x", false),
            ("{\"no\\u0064e\": {\"id\": \"a\"}}", true),
            ("{1: 2}", false),
            ("{\"node\" {}}", false),
            ("{\"node\": {\"metadata\": {\"a\": NaN}}}", false),
            ("{\"node\": {\"metadata\": {\"a\": 1e308}}}", true),
            ("{\"node\": {\"metadata\": {\"a\": 1e400}}}", false),
            ("{\"node\": {\"metadata\": {\"a\": .5}}}", false),
            ("{\"node\": {\"metadata\": {\"a\": 01}}}", false),
            ("{\"node\": {\"metadata\": {\"a\": 1.}}}", false),
            ("{\"node\": {\"metadata\": {\"a\": 0x10}}}", false),
        ],
    );
}

#[test]
fn numbers() {
    let limit = "per_connection_buffer_limit_bytes";
    check_field(
        Format::Yaml,
        limit,
        &[
            "1e3",
            "'1e3'",
            "1.0",
            "0x10",
            "'0x10'",
            "010",
            "'010'",
            "+5",
            "'+5'",
            "-0",
            "4294967295",
            "1e9",
            "null",
            "{}",
            "{value: 5}",
        ],
        &[
            "1.5",
            "0o10",
            "1_000",
            "' 5'",
            "'5 '",
            "08x",
            "4294967296",
            "1e10",
            "true",
            "''",
            "[]",
            ".inf",
            "NaN",
            "0b1",
        ],
    );
    check_field(
        Format::Json,
        limit,
        &["5", "5.0", "5e0", "\"5\"", "\"5.0\"", "\"0x5\"", "1E+3", "{\"value\": 5}"],
        &["5.5", "\" 5\"", "0x5", "05", "+5", ".5", "5.", "4294967296", "true", "\"\"", "1e400", "-1"],
    );
    check_field(
        Format::Yaml,
        "common_lb_config: {healthy_panic_threshold: {value: ",
        &["0.5", "5", "'0.5'", ".5", "1e2", "NaN", "0x10", "0x1p3", "' 0.5'", "-0"],
        &[".nan", ".inf", "inf", "nan", "1e400", "1_0", "5e", "'-'", "0.5f", "''", "true"],
    );
}

#[test]
fn booleans_and_enums() {
    check_field(
        Format::Yaml,
        "ignore_health_on_host_removal",
        &["yes", "no", "on", "off", "y", "N", "TRUE", "'true'", "'True'", "'yes'", "'1'", "'0'", "'t'", "tRuE", "null"],
        &["1", "0", "'on'", "''", "{}"],
    );
    check_field(
        Format::Yaml,
        "lb_policy",
        &["round_robin", "Round_Robin", "0", "'0'", "null", "-1", "7"],
        &["RoundRobin", "ROUND-ROBIN", "foo", "''", "true", "{}", "2147483648", "1.0"],
    );
}

#[test]
fn durations() {
    check_field(
        Format::Yaml,
        "connect_timeout",
        &["1s", "1.5s", "0.000000001s", "{seconds: 1}", "{seconds: '1', nanos: 5}", "{seconds: 1.0}", "null", "00001s"],
        &["1", "1.0", "0.0000000001s", ".5s", "+1s", "1 s", "1S", "1m", "1ms", "s", "''", "1e3s", "315576000001s"],
    );
}

#[test]
fn base64() {
    let secret = |value: &str| {
        let inline = format!("{{\"inline_bytes\": \"{value}\"}}");
        format!("{{\"static_resources\": {{\"secrets\": [{{\"generic_secret\": {{\"secret\": {inline}}}}}]}}}}")
    };
    for (value, expected) in [
        ("aGk=", true),
        ("aGk", true),
        ("aG-_", true),
        ("aG+/", true),
        ("", true),
        ("aGk==", false),
        ("a", false),
        ("aaaaa", false),
        ("aG k=", false),
        ("=", false),
        ("====", false),
        ("aGk=aGk=", false),
    ] {
        assert_eq!(taken(&secret(value), Format::Json), expected, "{value}");
    }
}

#[test]
fn a_name_again() {
    let printed = |text: &str| {
        let parsed = parse(text, Format::Json).unwrap_or_else(|errors| panic!("{text}: {errors:?}"));
        Descriptors::load().to_json(BOOTSTRAP, &parsed.bytes, Style::default()).to_string()
    };
    // In JSON a field may be set again: scalars are replaced, messages merged, lists appended.
    for (text, expected) in [
        (r#"{"node": {"id": "a", "id": ""}}"#, r#"{"node":{}}"#),
        (r#"{"node": {"id": "a"}, "node": {"cluster": "b"}}"#, r#"{"node":{"id":"a","cluster":"b"}}"#),
        (
            r#"{"static_resources": {"clusters": [{"name": "a"}], "clusters": [{"name": "b"}]}}"#,
            r#"{"static_resources":{"clusters":[{"name":"a"},{"name":"b"}]}}"#,
        ),
        (
            r#"{"static_resources": {"clusters": [{"connect_timeout": "1.5s", "connectTimeout": "0s"}]}}"#,
            r#"{"static_resources":{"clusters":[{"connect_timeout":"0s"}]}}"#,
        ),
    ] {
        assert_eq!(printed(text), expected, "{text}");
    }
    // But not a member of a oneof, a key of a map or "@type".
    check(
        Format::Json,
        &[
            (r#"{"static_resources": {"clusters": [{"type": "EDS", "type": "STATIC"}]}}"#, false),
            (r#"{"node": {"metadata": {"a": 1, "a": 2}}}"#, false),
            (
                r#"{"static_resources": {"clusters": [{"typed_extension_protocol_options": {"a": {}, "a": {}}}]}}"#,
                false,
            ),
            (
                r#"{"bootstrap_extensions": [{"typed_config": {"@type": "t/google.protobuf.Empty", "@type": "t/google.protobuf.Empty"}}]}"#,
                false,
            ),
        ],
    );
}

#[test]
fn nesting() {
    for levels in [10, 95, 96, 97, 98, 99, 100] {
        let lists = format!("{{\"node\": {{\"metadata\": {{\"a\": {}{}}}}}}}", "[".repeat(levels), "]".repeat(levels));
        let objects = format!("{{\"node\": {{\"metadata\": {}1{}}}}}", "{\"a\":".repeat(levels), "}".repeat(levels));
        assert_eq!(taken(&lists, Format::Json), levels <= 97, "{levels}");
        assert_eq!(taken(&lists, Format::Yaml), levels <= 97, "{levels}");
        assert_eq!(taken(&objects, Format::Json), levels <= 98, "{levels}");
    }
}
