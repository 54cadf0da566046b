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

fn ledger() -> (Rc<Says>, Ledger) {
    let says = Rc::new(Says::default());
    (says.clone(), Ledger::new(says))
}

fn state(ledger: &Ledger, name: &str) -> Option<State> {
    ledger.get(&T, name).map(Record::state)
}

fn version(config: Option<&Config>) -> &str {
    config.map_or("none", |config| &config.version)
}

#[test]
fn a_refusal_leaves_what_runs() {
    let (_, mut ledger) = ledger();
    ledger.accepted(&T, "a", "1", vec![1]);
    ledger.rejected(&T, "a", "2", vec![2], "boom");
    ledger.rejected(&T, "b", "2", vec![3], "never good");
    let a = ledger.get(&T, "a").unwrap();
    assert_eq!((a.state(), version(a.running.as_ref())), (State::Rejected, "1"));
    assert_eq!((&*a.refusal().unwrap().detail, a.version_offered().map(|v| &**v)), ("boom", Some("2")));
    assert!(ledger.get(&T, "b").unwrap().running.is_none());
    assert_eq!((ledger.count(Api::Cds, State::Rejected), ledger.count(Api::Cds, State::Running)), (2, 0));
    ledger.accepted(&T, "a", "3", vec![2]);
    assert!(ledger.get(&T, "a").unwrap().refusal().is_none());
    ledger.removed(&T, "a");
    assert_eq!((ledger.of(&T).count(), ledger.count(Api::Cds, State::Running)), (1, 0));
}

#[test]
fn what_warms_runs_once_its_manager_says_so() {
    let (says, mut ledger) = ledger();
    ledger.accepted(&T, "a", "1", vec![1]);
    says.warming.set(true);
    ledger.accepted(&T, "a", "2", vec![2]);
    let a = ledger.get(&T, "a").unwrap();
    assert_eq!((a.state(), version(a.running.as_ref()), version(a.warming())), (State::Warming, "1", "2"));
    let since = a.since;
    ledger.settle();
    assert_eq!(ledger.count(Api::Cds, State::Warming), 1);
    says.warming.set(false);
    ledger.settle();
    let a = ledger.get(&T, "a").unwrap();
    assert_eq!((a.state(), version(a.running.as_ref()), version(a.warming())), (State::Running, "2", "none"));
    assert!(a.since > since && a.rare.is_none());
}

#[test]
fn an_equal_version_changes_nothing_but_its_name() {
    let (_, mut ledger) = ledger();
    ledger.accepted(&T, "a", "1", vec![1]);
    let before = ledger.get(&T, "a").unwrap().clone();
    ledger.accepted(&T, "a", "2", vec![1]);
    let a = ledger.get(&T, "a").unwrap();
    let (old, new) = (before.running.unwrap(), a.running.as_ref().unwrap());
    assert_eq!((&*new.version, new.taken, a.since), ("2", old.taken, before.since));
    assert_eq!(old.bytes.as_ptr(), new.bytes.as_ptr());
}

#[test]
fn what_drains_is_listed_until_it_is_gone() {
    let (says, mut ledger) = ledger();
    ledger.accepted(&T, "a", "1", vec![1]);
    says.draining.set(true);
    ledger.accepted(&T, "a", "2", vec![2]);
    let a = ledger.get(&T, "a").unwrap();
    assert_eq!((a.state(), version(a.draining())), (State::Running, "1"));
    ledger.removed(&T, "a");
    assert_eq!(state(&ledger, "a"), Some(State::Draining));
    says.draining.set(false);
    ledger.settle();
    assert_eq!(state(&ledger, "a"), None);
    assert!(State::ALL.iter().all(|state| ledger.count(Api::Cds, *state) == 0));
}

#[test]
fn what_is_asked_for_by_name_may_not_exist() {
    let (_, mut ledger) = ledger();
    ledger.requested(&T, "a");
    assert_eq!(state(&ledger, "a"), Some(State::Requested));
    ledger.timed_out(&T, "a");
    ledger.accepted(&T, "a", "1", vec![1]);
    assert!(!ledger.get(&T, "a").unwrap().timed_out);
    ledger.does_not_exist(&T, "a");
    let a = ledger.get(&T, "a").unwrap();
    assert_eq!((a.state(), a.running.is_some()), (State::DoesNotExist, true), "what runs stays in use");
    ledger.accepted(&T, "a", "2", vec![1]);
    assert_eq!(state(&ledger, "a"), Some(State::Running));
    ledger.forget(&T, "a");
    assert_eq!(state(&ledger, "a"), None);
}

#[test]
fn the_page_shows_states_errors_and_warnings() {
    let (_, mut ledger) = ledger();
    ledger.record_static(&T, "first", Bytes::from_static(b"x"));
    ledger.warned(&T, "first", &["lb_policy: not used".to_owned()]);
    ledger.rejected(&T, "second\n", "7", vec![], "no\nway");
    ledger.requested(&TypeUrl::ROUTE, "r");
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

/// What a record takes is a promise of the README's budget; growing it must be a decision.
#[test]
fn a_record_is_small() {
    assert!(size_of::<Record>() <= 144, "{}", size_of::<Record>());
}
