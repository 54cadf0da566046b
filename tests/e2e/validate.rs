//! `--mode validate` on the fixtures: what it accepts and refuses, on both proxies, and what it tells a person.

use outrigger_tests::proxy::{Options, Outcome, run_with};
use serde_json::Value;
use std::path::{Path, PathBuf};

use super::support::is_envoy;

/// What the header of a fixture says should become of it.
struct Expected {
    accepted: bool,
    /// Parts of our own text.
    words: Vec<String>,
}

/// Reads `# verdict: accepted` (or `refused`), `# outrigger: refuses, because` (or `accepts`) and `# says: a part of the
/// problem`.
fn expected(text: &str) -> Expected {
    let header = |name: &'static str| text.lines().filter_map(move |line| line.strip_prefix(name));
    let accepted = match header("# verdict: ").next() {
        Some("accepted") => is_envoy() || header("# outrigger: refuses").next().is_none(),
        Some("refused") => !is_envoy() && header("# outrigger: accepts").next().is_some(),
        other => panic!("found the verdict {other:?}"),
    };
    Expected { accepted, words: header("# says: ").map(str::to_owned).collect() }
}

fn root() -> PathBuf {
    // certificates of fixtures are named from the top of the repository
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn fixtures(folder: &str) -> Vec<PathBuf> {
    let folder = root().join("tests/fixtures").join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn validate(file: &Path, flags: &[&str]) -> Outcome {
    let file = file.to_str().unwrap();
    let flags = [&["-c", file, "--mode", "validate", "--log-level", "warning"][..], flags].concat();
    run_with(Options {
        flags: flags.into_iter().map(Into::into).collect(),
        prefix: vec!["env".into(), "-C".into(), root().into()],
        ..Options::default()
    })
    .unwrap()
}

fn check(folder: &str) {
    let files = fixtures(folder);
    let wrong: Vec<String> = files
        .iter()
        .filter_map(|file| {
            let expected = expected(&std::fs::read_to_string(file).unwrap());
            let outcome = validate(file, &[]);
            let said = format!("{}{}", outcome.stdout, outcome.stderr);
            let as_expected = outcome.code == Some(i32::from(!expected.accepted))
                && (is_envoy() || expected.words.iter().all(|word| said.contains(word)));
            (!as_expected).then(|| format!("{} ended with {:?}: {said}", file.display(), outcome.code))
        })
        .collect();
    assert!(files.len() > 10 && wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_feature_is_accepted_or_refused_by_name() {
    check("bootstraps");
}

#[test]
fn the_loader_is_as_lenient_and_as_strict_as_envoys() {
    check("quirks");
}

#[test]
fn what_makes_no_sense_is_refused() {
    check("invalid");
}

fn write(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn json(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome:?}"))
}

fn paths(report: &Value, list: &str) -> Vec<String> {
    report[list].as_array().unwrap().iter().map(|p| p["path"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_problem_is_reported_at_once() {
    if is_envoy() {
        return;
    }
    let file = write(
        "static_resources:
  clusters:
    - { name: a, connect_timeout: 0s, lb_policy: BEST, conect_timeout: 1s }
    - { name: b, type: EDS }
    - { name: b }
    - { name: c, track_timeout_budgets: true }
",
    );
    let outcome = validate(file.path(), &[]);
    assert!(outcome.stderr.contains(": 5 problems"), "{outcome:?}");
    let outcome = validate(file.path(), &["--format", "json"]);
    let report = json(&outcome);
    assert_eq!((outcome.code, &report["valid"]), (Some(1), &false.into()));
    assert_eq!(
        paths(&report, "problems"),
        [
            "static_resources.clusters[0].lb_policy",
            "static_resources.clusters[0].conect_timeout",
            "static_resources.clusters[0].connect_timeout",
            "static_resources.clusters[1].eds_cluster_config",
            "static_resources.clusters[2].name",
        ]
    );
    assert_eq!(report["problems"][0]["kind"], "syntax");
    assert_eq!(report["problems"][2]["kind"], "rule");
    assert!(
        paths(&report, "warnings").contains(&"static_resources.clusters[3].track_timeout_budgets".to_owned()),
        "{report}"
    );
}

#[test]
fn resources_of_a_control_plane_are_checked_as_such() {
    if is_envoy() {
        return;
    }
    let cluster = "{ '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a, connect_timeout: 0s }";
    let route = "{ '@type': type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: r, virtual_hosts: [{ name: v, domains: ['*'], routes: [{ match: { prefix: / }, route: { cluster: anything } }] }] }";
    for (text, problems) in [
        (cluster.to_owned(), vec!["connect_timeout"]),
        (format!("[{cluster}, {route}]"), vec!["resources[0].connect_timeout"]),
        (format!("{{ version_info: '1', resources: [{route}] }}"), vec![]),
        (format!("[{route}, {route}]"), vec!["resources[1]"]),
    ] {
        let outcome = validate(write(&text).path(), &["--format", "json"]);
        assert_eq!(paths(&json(&outcome), "problems"), problems, "{text}");
        assert_eq!(outcome.code, Some(i32::from(!problems.is_empty())));
    }
}

#[test]
fn unknown_fields_pass_when_the_flag_says_so() {
    let file = write("static_resources: { clusters: [{ name: a, conect_timeout: 1s }] }");
    assert_eq!(validate(file.path(), &[]).code, Some(1));
    let outcome = validate(file.path(), &["--allow-unknown-static-fields"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("Unknown field: ") && outcome.stderr.contains("conect_timeout"), "{outcome:?}");
}

#[test]
fn deprecated_fields_are_named() {
    let file = write("static_resources: { clusters: [{ name: a, http2_protocol_options: {} }] }");
    let outcome = validate(file.path(), &[]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let said = "Using deprecated option 'envoy.config.cluster.v3.Cluster.http2_protocol_options'";
    assert!(outcome.stderr.contains(said), "{outcome:?}");
    assert!(!validate(file.path(), &["--skip-deprecated-logs"]).stderr.contains(said));
}
