use super::*;
use crate::admin::LedgerQuery;
use std::cell::Cell;

/// A manager that says what a test wants.
#[derive(Default)]
struct Says {
    warming: Cell<bool>,
    draining: Cell<bool>,
}

impl Standing for Says {
    fn is_warming(&self, api: Api, _: &str) -> bool {
        api == Api::Cds && self.warming.get()
    }

    fn is_draining(&self, api: Api, _: &str) -> bool {
        api == Api::Cds && self.draining.get()
    }
}

const T: TypeUrl = TypeUrl::CLUSTER;

fn ads() -> Arc<str> {
    "ads".into()
}

fn ledger() -> (Rc<Says>, Ledger) {
    let says = Rc::new(Says::default());
    (says.clone(), Ledger::new(says))
}

fn state(ledger: &Ledger, name: &str) -> Option<State> {
    ledger.get(&T, "ads", name).map(Record::state)
}

fn version(config: Option<&Config>) -> &str {
    config.map_or("none", |config| &config.version)
}

#[test]
fn a_refusal_leaves_what_runs() {
    let (_, mut ledger) = ledger();
    ledger.accepted(&T, &ads(), "a", "1", vec![1]);
    ledger.rejected(&T, &ads(), "a", "2", vec![2], "boom");
    ledger.rejected(&T, &ads(), "b", "2", vec![3], "never good");
    let a = ledger.get(&T, "ads", "a").unwrap();
    assert_eq!((a.state(), version(a.running.as_ref())), (State::Rejected, "1"));
    assert_eq!((&*a.refusal().unwrap().detail, a.version_offered().map(|v| &**v)), ("boom", Some("2")));
    assert!(ledger.get(&T, "ads", "b").unwrap().running.is_none());
    assert_eq!((ledger.count(Api::Cds, State::Rejected), ledger.count(Api::Cds, State::Running)), (2, 0));
    ledger.accepted(&T, &ads(), "a", "3", vec![2]);
    assert!(ledger.get(&T, "ads", "a").unwrap().refusal().is_none());
    ledger.removed(&T, &ads(), "a");
    assert_eq!((ledger.of(&T).count(), ledger.count(Api::Cds, State::Running)), (1, 0));
}

#[test]
fn what_warms_runs_once_its_manager_says_so() {
    let (says, mut ledger) = ledger();
    ledger.accepted(&T, &ads(), "a", "1", vec![1]);
    says.warming.set(true);
    ledger.accepted(&T, &ads(), "a", "2", vec![2]);
    let a = ledger.get(&T, "ads", "a").unwrap();
    assert_eq!((a.state(), version(a.running.as_ref()), version(a.warming())), (State::Warming, "1", "2"));
    let since = a.since;
    ledger.settle();
    assert_eq!(ledger.count(Api::Cds, State::Warming), 1);
    says.warming.set(false);
    ledger.settle();
    let a = ledger.get(&T, "ads", "a").unwrap();
    assert_eq!((a.state(), version(a.running.as_ref()), version(a.warming())), (State::Running, "2", "none"));
    assert!(a.since > since && a.rare.is_none());
}

#[test]
fn an_equal_version_changes_nothing_but_its_name() {
    let (_, mut ledger) = ledger();
    ledger.accepted(&T, &ads(), "a", "1", vec![1]);
    let before = ledger.get(&T, "ads", "a").unwrap().clone();
    ledger.accepted(&T, &ads(), "a", "2", vec![1]);
    let a = ledger.get(&T, "ads", "a").unwrap();
    let (old, new) = (before.running.unwrap(), a.running.as_ref().unwrap());
    assert_eq!((&*new.version, new.taken, a.since), ("2", old.taken, before.since));
    assert_eq!(old.bytes.as_ptr(), new.bytes.as_ptr());
}

#[test]
fn what_drains_is_listed_until_it_is_gone() {
    let (says, mut ledger) = ledger();
    ledger.accepted(&T, &ads(), "a", "1", vec![1]);
    says.draining.set(true);
    ledger.accepted(&T, &ads(), "a", "2", vec![2]);
    let a = ledger.get(&T, "ads", "a").unwrap();
    assert_eq!((a.state(), version(a.draining())), (State::Running, "1"));
    ledger.removed(&T, &ads(), "a");
    assert_eq!(state(&ledger, "a"), Some(State::Draining));
    says.draining.set(false);
    ledger.settle();
    assert_eq!(state(&ledger, "a"), None);
    assert!(State::ALL.iter().all(|state| ledger.count(Api::Cds, *state) == 0));
}

#[test]
fn what_is_asked_for_by_name_may_not_exist() {
    let (_, mut ledger) = ledger();
    ledger.requested(&T, &ads(), "a");
    assert_eq!(state(&ledger, "a"), Some(State::Requested));
    ledger.timed_out(&T, &ads(), "a");
    ledger.accepted(&T, &ads(), "a", "1", vec![1]);
    assert!(!ledger.get(&T, "ads", "a").unwrap().timed_out);
    ledger.does_not_exist(&T, &ads(), "a");
    let a = ledger.get(&T, "ads", "a").unwrap();
    assert_eq!((a.state(), a.running.is_some()), (State::DoesNotExist, true), "what runs stays in use");
    ledger.accepted(&T, &ads(), "a", "2", vec![1]);
    assert_eq!(state(&ledger, "a"), Some(State::Running));
    ledger.forget(&T, &ads(), "a");
    assert_eq!(state(&ledger, "a"), None);
}

#[test]
fn the_page_shows_states_errors_and_warnings() {
    let (_, mut ledger) = ledger();
    ledger.record_static(&T, "first", Bytes::from_static(b"x"), &["lb_policy: not used".to_owned()]);
    ledger.rejected(&T, &ads(), "second\n", "7", vec![], "no\nway");
    ledger.requested(&TypeUrl::ROUTE, &ads(), "r");
    let page = |query: &LedgerQuery| ledger.page(query).unwrap();
    let text = page(&LedgerQuery::default());
    let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0][..3], ["TYPE", "NAME", "STATE"]);
    assert_eq!(words[1][..5], ["rds", "r", "requested", "-", "-"]);
    assert_eq!(words[2][..5], ["cds", "first", "running", "(static)", "(static)"]);
    assert_eq!(words[3], ["warning:", "lb_policy:", "not", "used"]);
    assert_eq!(words[4][..5], ["cds", "second\\n", "rejected", "-", "7"]);
    assert!(text.lines().nth(5).unwrap().ends_with("no\\nway"), "{text}");
    let state = |line: &str| line.find("requested").or(line.find("running ").or(line.find("rejected")));
    assert_eq!(state(text.lines().nth(1).unwrap()), state(text.lines().nth(4).unwrap()));

    let some = LedgerQuery { state: Some("rejected".into()), json: true, ..LedgerQuery::default() };
    let json: serde_json::Value = serde_json::from_str(&page(&some)).unwrap();
    assert_eq!(json["resources"].as_array().unwrap().len(), 1);
    assert_eq!(json["resources"][0]["error"]["details"], "no\nway");
    let named = LedgerQuery { name_regex: Some("fi.*".into()), ..LedgerQuery::default() };
    assert_eq!(page(&named).lines().count(), 3);
    let none = LedgerQuery { api: Some("lds".into()), json: true, ..LedgerQuery::default() };
    assert_eq!(page(&none), "{\n \"resources\": []\n}\n");
    let bad = LedgerQuery { api: Some("xds".into()), ..LedgerQuery::default() };
    assert!(ledger.page(&bad).unwrap_err().starts_with("type is 'xds', expected one of lds, rds"));
}

#[test]
fn one_name_from_two_sources_is_two_records() {
    let (_, mut ledger) = ledger();
    let other: Arc<str> = "other".into();
    ledger.record_static(&TypeUrl::SECRET, "default", Bytes::from_static(b"s"), &[]);
    ledger.accepted(&TypeUrl::SECRET, &ads(), "default", "1", vec![1]);
    ledger.accepted(&TypeUrl::SECRET, &other, "default", "2", vec![1]);
    let sources: Vec<&str> = ledger.of(&TypeUrl::SECRET).map(|(id, _)| &*id.source).collect();
    assert_eq!(sources, ["ads", "bootstrap", "other"]);
    ledger.forget(&TypeUrl::SECRET, &ads(), "default");
    assert!(ledger.get(&TypeUrl::SECRET, "ads", "default").is_none());
    assert_eq!(version(ledger.get(&TypeUrl::SECRET, "other", "default").unwrap().running.as_ref()), "2");
    assert!(ledger.is_static(&TypeUrl::SECRET, "default") && ledger.named(&TypeUrl::SECRET, "defaul").is_none());
    let json: serde_json::Value =
        serde_json::from_str(&ledger.page(&LedgerQuery { json: true, ..LedgerQuery::default() }).unwrap()).unwrap();
    assert_eq!(
        (&json["resources"][0]["source"], &json["resources"][1]["source"]),
        (&"bootstrap".into(), &"other".into())
    );
}

#[test]
fn sources_have_names_of_their_own() {
    use crate::config::model::{ApiConfigSource, GrpcTarget, PathSource};
    let (_, mut ledger) = ledger();
    let api = |delta| {
        let target = GrpcTarget::Cluster { name: "ads".into(), authority: None };
        ConfigSourceKind::Api(Arc::new(ApiConfigSource {
            delta,
            target,
            set_node_on_first_message_only: false,
            polling: None,
            rate_limit: None,
            metadata: Vec::new(),
        }))
    };
    let file = ConfigSourceKind::Path(Arc::new(PathSource { path: "/a/b".into(), watched_directory: None }));
    let all = [ConfigSourceKind::Ads, api(true), api(false), file];
    let names: Vec<Arc<str>> = all.iter().map(|source| ledger.source(source)).collect();
    assert_eq!(names.iter().map(|n| &**n).collect::<Vec<_>>(), ["ads", "ads (#2)", "ads (#3)", "/a/b"]);
    assert!(all.iter().zip(&names).all(|(source, name)| ledger.source(source) == *name));
}

#[test]
fn listeners_without_a_name_are_not_one() {
    let (_, mut ledger) = ledger();
    for n in 0..3_u8 {
        ledger.record_static(&TypeUrl::LISTENER, "", Bytes::from(vec![n]), &[]);
    }
    assert_eq!(ledger.of(&TypeUrl::LISTENER).count(), 3);
}

#[test]
fn an_equal_offer_is_an_offer() {
    let (_, mut ledger) = ledger();
    ledger.accepted(&T, &ads(), "a", "1", vec![1]);
    let before = ledger.get(&T, "ads", "a").unwrap().clone();
    ledger.repeated(&T, &ads(), "a", "2");
    let after = ledger.get(&T, "ads", "a").unwrap();
    assert_eq!(after.version_offered().map(|v| &**v), Some("2"));
    assert!(after.offered_at() >= before.offered_at());
    assert_eq!((after.since, after.running.as_ref()), (before.since, before.running.as_ref()), "as Envoy shows it");
}

#[test]
fn refusals_without_end_find_an_end() {
    let (_, mut ledger) = ledger();
    ledger.accepted(&T, &ads(), "good", "1", vec![1]);
    for n in 0..MOST_REFUSED + 5 {
        ledger.rejected(&T, &ads(), &format!("r{n}"), "1", vec![2], "bad");
    }
    assert_eq!(ledger.of(&T).count(), MOST_REFUSED + 1);
    ledger.rejected(&T, &ads(), "good", "2", vec![2], "bad");
    assert_eq!(state(&ledger, "good"), Some(State::Rejected), "what runs is told of whatever the others did");
    assert_eq!((ledger.take_not_kept(Api::Cds), ledger.take_not_kept(Api::Cds)), (5, 0));
}

#[test]
fn a_source_that_gives_nothing_says_why() {
    let (_, mut ledger) = ledger();
    ledger.requested(&TypeUrl::ROUTE, &ads(), "r");
    ledger.failed(&TypeUrl::ROUTE, &ads(), "r", &"line 3: no such field".into());
    let page = ledger.page(&LedgerQuery::default()).unwrap();
    assert!(page.contains("requested") && page.contains("line 3: no such field"), "{page}");
    ledger.accepted(&TypeUrl::ROUTE, &ads(), "r", "1", vec![1]);
    assert!(!ledger.page(&LedgerQuery::default()).unwrap().contains("line 3"));
}

/// What a record takes is a promise of the README's budget; growing it must be a decision.
#[test]
fn a_record_is_small() {
    assert!(size_of::<Record>() <= 144, "{}", size_of::<Record>());
}
