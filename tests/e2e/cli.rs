//! Flags, and what a person reads when the bootstrap is wrong: one line that says where, what and what instead.

use outrigger_tests::proxy::{Outcome, run};

use super::support::*;

/// Runs with a bootstrap that holds `text`. `None` on the real Envoy, whose errors read otherwise.
fn run_file(text: &str, flags: &[&str]) -> Option<(Outcome, String)> {
    if is_envoy() {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bootstrap.yaml");
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap().to_owned();
    let outcome = run(&[&["-c", &file, "--log-level", "warning"][..], flags].concat()).unwrap();
    Some((outcome, file))
}

/// The lines of stderr that report an error; there must be one.
fn error_line(outcome: &Outcome) -> &str {
    let lines: Vec<&str> = outcome.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!((outcome.code, outcome.signal), (Some(1), None), "{outcome:?}");
    assert_eq!(lines.len(), 1, "one line: {}", outcome.stderr);
    lines[0]
}

#[test]
fn a_mistake_in_the_bootstrap_is_named_with_its_place() {
    let admin = "admin: { address: { socket_address: { address: 127.0.0.1, port_value: 0 } } }\n";
    let listener = "static_resources: { listeners: [{ name: front, address: { socket_address: { address: 127.0.0.1, port_value: 0 } }, ";
    let one_cluster = |fields: &str| format!("static_resources: {{ clusters: [{{ name: a, {fields} }}] }}");
    let cases: Vec<(&str, String, Vec<&str>)> = vec![
        ("an unknown field", one_cluster("conect_timeout: 1s"), vec!["static_resources.clusters[0]", "conect_timeout"]),
        ("a number for text", one_cluster("type: { a: b }"), vec!["static_resources.clusters[0].type"]),
        (
            "text for a number",
            one_cluster("per_connection_buffer_limit_bytes: many"),
            vec!["static_resources.clusters[0].per_connection_buffer_limit_bytes", "many"],
        ),
        (
            "no duration",
            one_cluster("connect_timeout: soon"),
            vec!["static_resources.clusters[0].connect_timeout", "soon"],
        ),
        (
            "an unknown enum value",
            one_cluster("lb_policy: BEST"),
            vec!["static_resources.clusters[0].lb_policy", "BEST"],
        ),
        (
            "an unknown type",
            format!(
                "{listener} filter_chains: [{{ filters: [{{ name: x, typed_config: {{ '@type': type.googleapis.com/no.such.Filter }} }}] }}] }}] }}"
            ),
            vec!["static_resources.listeners[0].filter_chains[0].filters[0]", "no.such.Filter"],
        ),
        ("a list for a map", "static_resources: [1, 2]".to_owned(), vec!["static_resources"]),
        ("no YAML", "static_resources: { listeners: [".to_owned(), vec![]),
        ("a missing certificate", tls_listener("/no/such/cert.pem", "/no/such/key.pem"), vec!["/no/such/"]),
    ];
    for (what, text, words) in cases {
        let Some((outcome, file)) = run_file(&(admin.to_owned() + &text), &[]) else { return };
        let line = error_line(&outcome);
        for word in words.into_iter().chain([file.as_str()]) {
            assert!(line.contains(word), "{what}: '{word}' is missing in: {line}");
        }
    }
}

fn tls_listener(cert: &str, key: &str) -> String {
    let transport = format!(
        "{{ name: tls, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         common_tls_context: {{ tls_certificates: [{{ certificate_chain: {{ filename: {cert} }}, private_key: {{ filename: {key} }} }}] }} }} }}"
    );
    let routes = "{ match: { prefix: / }, direct_response: { status: 200 } }";
    format!("static_resources:\n  listeners:\n{}", Front { routes, transport: &transport, ..Front::default() }.yaml())
}

#[test]
fn an_unreadable_certificate_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cert.pem");
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n").unwrap();
    let path = path.to_str().unwrap();
    let Some((outcome, _)) = run_file(&tls_listener(path, path), &[]) else { return };
    let line = error_line(&outcome);
    assert!(line.contains(path) && line.contains("certificate"), "{line}");
}

#[test]
fn a_missing_file_and_a_port_in_use_are_named() {
    if is_envoy() {
        return;
    }
    let outcome = run(&["-c", "/no/such/bootstrap.yaml"]).unwrap();
    assert!(error_line(&outcome).contains("/no/such/bootstrap.yaml"), "{}", outcome.stderr);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let front = Front { routes: "{ match: { prefix: / }, direct_response: { status: 200 } }", ..Front::default() };
    let yaml = format!(
        "static_resources:\n  listeners:\n{}",
        front.yaml().replacen("port_value: 0", &format!("port_value: {port}"), 1)
    );
    let Some((outcome, _)) = run_file(&yaml, &[]) else { return };
    let line = error_line(&outcome);
    assert!(line.contains(&format!("127.0.0.1:{port}")) && line.contains("front"), "{line}");
    let admin = format!("admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}");
    let Some((outcome, _)) = run_file(&admin, &[]) else { return };
    let line = error_line(&outcome);
    assert!(line.contains(&format!("127.0.0.1:{port}")) && line.contains("admin"), "{line}");
}

#[test]
fn validate_says_whether_it_would_start() {
    let front = Front { routes: "{ match: { prefix: / }, direct_response: { status: 200 } }", ..Front::default() };
    let yaml = format!("static_resources:\n  listeners:\n{}", front.yaml());
    let Some((good, _)) = run_file(&yaml, &["--mode", "validate"]) else { return };
    assert_eq!(good.code, Some(0), "{good:?}");
    assert!((good.stdout + &good.stderr).contains("OK"));
    let broken = yaml.replace("stat_prefix", "stat_prefiks");
    let Some((bad, _)) = run_file(&broken, &["--mode", "validate"]) else { return };
    assert_eq!(bad.code, Some(1), "{bad:?}");
    assert!(bad.stderr.contains("did you mean \"stat_prefix\"?") && bad.stderr.contains(": 3 problems"), "{bad:?}");
}

#[test]
fn flags_are_envoys() {
    let version = run(&["--version"]).unwrap();
    assert_eq!(version.code, Some(0));
    assert!(version.stdout.contains("version: "), "{}", version.stdout);
    let help = run(&["--help"]).unwrap();
    assert_eq!(help.code, Some(0));
    for flag in [
        "--concurrency",
        "--config-path",
        "--config-yaml",
        "--mode",
        "--admin-address-path",
        "--local-address-ip-version",
        "--log-level",
        "--component-log-level",
        "--log-format",
        "--log-path",
        "--restart-epoch",
        "--drain-time-s",
        "--drain-strategy",
        "--parent-shutdown-time-s",
        "--disable-hot-restart",
        "--base-id",
        "--service-cluster",
        "--service-node",
        "--service-zone",
        "--file-flush-interval-msec",
        "--allow-unknown-static-fields",
        "--reject-unknown-dynamic-fields",
        "--cpuset-threads",
        "--skip-deprecated-logs",
    ] {
        assert!(help.stdout.contains(flag), "{flag} is missing");
    }
    let wrong = run(&["--no-such-flag"]).unwrap();
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    assert!(wrong.stderr.contains("--no-such-flag"), "{}", wrong.stderr);
    let nothing = run(&[]).unwrap();
    assert_eq!(nothing.code, Some(1), "{nothing:?}");
}

#[tokio::test]
async fn yaml_on_the_command_line_is_merged_on_top() {
    let front =
        Front { routes: "{ match: { prefix: / }, direct_response: { status: 200 } }", ..Front::default() }.yaml();
    let bootstrap =
        outrigger_tests::config::Bootstrap { node_id: "file", static_listeners: &front, ..Default::default() };
    let more = "{ node: { id: flag }, static_resources: { clusters: [{ name: added, connect_timeout: 1s }] } }";
    let options = options().flag("--config-yaml").flag(more).flag("--service-zone").flag("z1");
    let proxy = outrigger_tests::proxy::Proxy::start_with(&bootstrap.yaml(), options).await.unwrap();
    let info = proxy.admin("/server_info").await.unwrap().json();
    assert_eq!((&info["node"]["id"], &info["node"]["cluster"]), (&"flag".into(), &"test".into()));
    assert_eq!(info["node"]["locality"]["zone"], "z1");
    assert!(proxy.admin("/clusters").await.unwrap().text().contains("added::added_via_api::false"));
    let front = address(&proxy, "front").await;
    assert_eq!(Client::plain(front, false).await.get("a", "/").await.status, 200);
}
