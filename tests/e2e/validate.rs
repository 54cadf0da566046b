//! `--mode validate` on the fixtures: what it accepts and refuses, on both proxies, and what it tells a person.

use outrigger_tests::proxy::{Options, Outcome, envoy, run_with};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::support::is_envoy;

/// What the header of a fixture says should become of it.
pub(super) struct Expected {
    /// By the real Envoy.
    envoy_accepts: bool,
    /// By the proxy under test.
    pub(super) accepted: bool,
    /// Parts of our own text.
    words: Vec<String>,
}

/// Reads `# verdict: accepted` (or `refused`), `# outrigger: refuses, because` (or `accepts`) and `# says: a part of the
/// problem`.
pub(super) fn expected(text: &str) -> Expected {
    let header = |name: &'static str| text.lines().filter_map(move |line| line.strip_prefix(name));
    let (envoy_accepts, accepted) = match header("# verdict: ").next() {
        Some("accepted") => (true, header("# outrigger: refuses").next().is_none()),
        Some("refused") => (false, header("# outrigger: accepts").next().is_some()),
        other => panic!("found the verdict {other:?}"),
    };
    let accepted = if is_envoy() { envoy_accepts } else { accepted };
    Expected { envoy_accepts, accepted, words: header("# says: ").map(str::to_owned).collect() }
}

pub(super) fn root() -> PathBuf {
    // certificates of fixtures are named from the top of the repository
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(super) fn fixtures(folder: &str) -> Vec<PathBuf> {
    let folder = root().join("tests/fixtures").join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn validate(file: &Path, flags: &[&str]) -> Outcome {
    validate_by(PathBuf::new(), file, flags)
}

/// An empty `binary` is the one under test.
fn validate_by(binary: PathBuf, file: &Path, flags: &[&str]) -> Outcome {
    let file = file.to_str().unwrap();
    let flags = [&["-c", file, "--mode", "validate", "--log-level", "warning"][..], flags].concat();
    run_with(Options {
        binary,
        flags: flags.into_iter().map(Into::into).collect(),
        prefix: vec!["env".into(), "-C".into(), root().into()],
        ..Options::default()
    })
    .unwrap()
}

/// Gives every fixture to the proxy under test and to the real Envoy: both must do what its header says.
fn check(folder: &str) {
    let files = fixtures(folder);
    // says it on stderr when there is none
    let real = if is_envoy() { None } else { envoy() };
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    wrong.lock().unwrap().extend(differences(file, real.as_deref()));
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(files.len() > 10 && wrong.is_empty(), "{}", wrong.join("\n"));
}

fn differences(file: &Path, real: Option<&Path>) -> Vec<String> {
    let expected = expected(&std::fs::read_to_string(file).unwrap());
    let mut wrong = Vec::new();
    let mut judge = |who: &str, outcome: Outcome, accepts: bool, words: &[String]| {
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        if outcome.code != Some(i32::from(!accepts)) || !words.iter().all(|word| said.contains(word)) {
            wrong.push(format!("{}: {who} ended with {:?}: {said}", file.display(), outcome.code));
        }
    };
    let words = if is_envoy() { &[][..] } else { &expected.words };
    judge("the proxy under test", validate(file, &[]), expected.accepted, words);
    if let Some(real) = real {
        judge("envoy", validate_by(real.to_owned(), file, &[]), expected.envoy_accepts, &[]);
    }
    wrong
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
        (
            format!("{{ resources: [{{ name: a, version: '1', resource: {cluster} }}] }}"),
            vec!["resources[0].connect_timeout"],
        ),
        (
            format!(
                "{{ '@type': type.googleapis.com/envoy.service.discovery.v3.DiscoveryResponse, resources: [{cluster}] }}"
            ),
            vec!["resources[0].connect_timeout"],
        ),
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
