//! The ledger: of every resource, what runs, what was offered, and what became of it.

use std::collections::BTreeMap;
use std::time::SystemTime;
use xds_client::TypeUrl;

/// What became of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Taken; it may still be warming (the managers know).
    Accepted,
    /// The last offer was refused; what ran before still runs.
    Rejected,
}

/// One resource.
#[derive(Debug, Clone)]
pub struct Record {
    pub state: State,
    /// Version and message that run; `None` when no version was ever good.
    pub running: Option<Running>,
    /// The last refusal since then.
    pub error: Option<Refusal>,
    /// Given by the bootstrap and not by a control plane.
    pub is_static: bool,
}

#[derive(Debug, Clone)]
pub struct Running {
    pub version: String,
    /// The message as it came.
    pub bytes: Vec<u8>,
    pub since: SystemTime,
}

#[derive(Debug, Clone)]
pub struct Refusal {
    pub version: String,
    pub detail: String,
    pub at: SystemTime,
}

/// Records by type and name.
#[derive(Debug, Default)]
pub struct Ledger {
    types: BTreeMap<String, BTreeMap<String, Record>>,
    /// Version of the last wholly accepted response, by type.
    versions: BTreeMap<String, String>,
}

impl Ledger {
    /// A resource of the bootstrap.
    pub fn record_static(&mut self, type_url: &TypeUrl, name: &str, bytes: Vec<u8>) {
        let running = Running { version: String::new(), bytes, since: SystemTime::now() };
        let record = Record { state: State::Accepted, running: Some(running), error: None, is_static: true };
        self.types.entry(type_url.as_str().to_owned()).or_default().insert(name.to_owned(), record);
    }

    pub fn accepted(&mut self, type_url: &TypeUrl, name: &str, version: &str, bytes: Vec<u8>) {
        let running = Running { version: version.to_owned(), bytes, since: SystemTime::now() };
        let record = Record { state: State::Accepted, running: Some(running), error: None, is_static: false };
        self.types.entry(type_url.as_str().to_owned()).or_default().insert(name.to_owned(), record);
    }

    pub fn rejected(&mut self, type_url: &TypeUrl, name: &str, version: &str, detail: &str) {
        let error = Refusal { version: version.to_owned(), detail: detail.to_owned(), at: SystemTime::now() };
        let record = self
            .types
            .entry(type_url.as_str().to_owned())
            .or_default()
            .entry(name.to_owned())
            .or_insert_with(|| Record { state: State::Rejected, running: None, error: None, is_static: false });
        record.state = State::Rejected;
        record.error = Some(error);
    }

    pub fn forget(&mut self, type_url: &TypeUrl, name: &str) {
        if let Some(records) = self.types.get_mut(type_url.as_str()) {
            records.remove(name);
        }
    }

    pub fn set_version(&mut self, type_url: &TypeUrl, version: &str) {
        self.versions.insert(type_url.as_str().to_owned(), version.to_owned());
    }

    pub fn version(&self, type_url: &TypeUrl) -> &str {
        self.versions.get(type_url.as_str()).map_or("", String::as_str)
    }

    /// Records of a type, by name.
    pub fn of(&self, type_url: &TypeUrl) -> impl Iterator<Item = (&str, &Record)> {
        self.types.get(type_url.as_str()).into_iter().flatten().map(|(name, record)| (name.as_str(), record))
    }

    pub fn get(&self, type_url: &TypeUrl, name: &str) -> Option<&Record> {
        self.types.get(type_url.as_str())?.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_leaves_what_runs() {
        let mut ledger = Ledger::default();
        let t = TypeUrl::CLUSTER;
        ledger.accepted(&t, "a", "1", vec![1]);
        ledger.rejected(&t, "a", "2", "boom");
        ledger.rejected(&t, "b", "2", "never good");
        let a = ledger.get(&t, "a").unwrap();
        assert_eq!((a.state, a.running.as_ref().unwrap().version.as_str()), (State::Rejected, "1"));
        assert_eq!(a.error.as_ref().unwrap().detail, "boom");
        assert!(ledger.get(&t, "b").unwrap().running.is_none());
        ledger.accepted(&t, "a", "3", vec![2]);
        assert!(ledger.get(&t, "a").unwrap().error.is_none());
        ledger.forget(&t, "a");
        assert_eq!(ledger.of(&t).count(), 1);
    }
}
