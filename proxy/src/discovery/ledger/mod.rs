//! The ledger: of every resource, what runs, what was offered, and what became of it.
//!
//! Discovery writes down what it hears, as it happens. Whether something still warms or drains its manager knows, and is
//! asked. What a message means, the ledger does not know.

mod page;
mod record;
mod source;
mod standing;
mod stats;

pub use record::{Config, Failure, Offer, Record, Refusal, State};
pub use source::Id;
pub use standing::{Managers, Standing, follow};
pub use stats::LedgerStats;

use crate::config::model::ConfigSourceKind;
use bytes::Bytes;
use record::Rare;
use source::{Named, Sources};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use xds_client::TypeUrl;

/// Texts of warnings that are kept; names in them come from a control plane, so there must be an end.
const MOST_WARNINGS: usize = 1000;
/// Warnings kept of one resource.
const MOST_WARNINGS_EACH: usize = 50;
/// Refused resources that are kept of a type. What runs is bounded by what it costs to run it; what is refused costs a
/// control plane nothing, and one that makes up a new name each time would fill the memory.
const MOST_REFUSED: usize = 1000;

/// Offers of one version so close to each other count as of one time.
const SAME_RESPONSE: Duration = Duration::from_millis(20);

/// A discovery service, and with it a type of resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    Lds,
    Rds,
    Srds,
    Vhds,
    Cds,
    Eds,
    Sds,
    Ecds,
    Rtds,
}

impl Api {
    pub const ALL: [Api; 9] =
        [Api::Lds, Api::Rds, Api::Srds, Api::Vhds, Api::Cds, Api::Eds, Api::Sds, Api::Ecds, Api::Rtds];

    pub fn of(type_url: &TypeUrl) -> Option<Api> {
        Api::ALL.into_iter().find(|api| api.type_url() == *type_url)
    }

    pub fn type_url(self) -> TypeUrl {
        match self {
            Api::Lds => TypeUrl::LISTENER,
            Api::Rds => TypeUrl::ROUTE,
            Api::Srds => TypeUrl::SCOPED_ROUTE,
            Api::Vhds => TypeUrl::VIRTUAL_HOST,
            Api::Cds => TypeUrl::CLUSTER,
            Api::Eds => TypeUrl::ENDPOINT,
            Api::Sds => TypeUrl::SECRET,
            Api::Ecds => TypeUrl::EXTENSION,
            Api::Rtds => TypeUrl::RUNTIME,
        }
    }

    /// `lds`, `rds`, ...
    pub fn name(self) -> &'static str {
        match self {
            Api::Lds => "lds",
            Api::Rds => "rds",
            Api::Srds => "srds",
            Api::Vhds => "vhds",
            Api::Cds => "cds",
            Api::Eds => "eds",
            Api::Sds => "sds",
            Api::Ecds => "ecds",
            Api::Rtds => "rtds",
        }
    }
}

/// Records by type, name and source.
pub struct Ledger {
    standing: Rc<dyn Standing>,
    books: [Book; 9],
    sources: Sources,
    warnings: HashSet<Arc<str>>,
    /// The last set of warnings: most resources of a type have the same.
    same_warnings: Arc<[Arc<str>]>,
}

/// The records of one type.
#[derive(Default)]
struct Book {
    records: BTreeMap<Id, Box<Record>>,
    /// Version of the last wholly accepted response.
    version: Arc<str>,
    /// The version last written down: resources of one response share it.
    last_version: Arc<str>,
    last_offer: Option<Arc<Offer>>,
    /// Those that warm or drain.
    unsettled: BTreeSet<Id>,
    /// Indexed by `State as usize`.
    counts: [usize; 6],
    /// Refusals that found no room.
    not_kept: u64,
}

impl Ledger {
    pub fn new(standing: Rc<dyn Standing>) -> Ledger {
        Ledger {
            standing,
            books: Default::default(),
            sources: Sources::default(),
            warnings: HashSet::new(),
            same_warnings: Arc::default(),
        }
    }

    /// What a source is called here: the same for the same source, another for every other.
    pub fn source(&mut self, source: &ConfigSourceKind) -> Arc<str> {
        self.sources.name(source)
    }

    /// A resource of the bootstrap. `bytes` may be a part of the bootstrap's own.
    pub fn record_static(&mut self, type_url: &TypeUrl, name: &str, bytes: Bytes, warnings: &[String]) {
        let now = SystemTime::now();
        let set = (!warnings.is_empty()).then(|| self.warning_set(warnings));
        let mut source = self.sources.bootstrap();
        // listeners of the bootstrap need no name, so several may have none
        let twins = self.of(type_url).filter(|(id, _)| name.is_empty() && id.name.is_empty()).count();
        if twins > 0 {
            source = format!("{source} (#{})", twins + 1).into();
        }
        self.change(type_url, &source, name, |book, record, _| {
            record.is_static = true;
            (record.offered, record.since) = (Some(book.offer("", now)), Some(now));
            record.running = Some(Config { version: book.version(""), bytes, taken: now });
            record.warnings = set;
        });
    }

    /// Somebody asks for it by name.
    pub fn requested(&mut self, type_url: &TypeUrl, source: &Arc<str>, name: &str) {
        self.change(type_url, source, name, |_, record, _| {
            record.requested.get_or_insert_with(SystemTime::now);
        });
    }

    /// A version was taken. It runs, unless its manager says that it warms.
    pub fn accepted(
        &mut self,
        type_url: &TypeUrl,
        source: &Arc<str>,
        name: &str,
        version: &str,
        bytes: impl Into<Bytes>,
    ) {
        let bytes = bytes.into();
        let now = SystemTime::now();
        self.change(type_url, source, name, |book, record, (warming, draining)| {
            record.offered = Some(book.offer(version, now));
            (record.missing, record.timed_out) = (false, false);
            let version = book.version(version);
            let earlier = record.rare.take().map(|rare| *rare).unwrap_or_default();
            // an equal version is no news: what is held already is kept, and when it came
            let known = [&earlier.warming, &record.running].into_iter().flatten().find(|c| c.bytes == bytes).cloned();
            let config = match known {
                Some(known) => Config { version, ..known },
                None => Config { version, bytes, taken: now },
            };
            let draining_before = earlier.draining.filter(|_| draining);
            if warming {
                *record.rare() = Rare { warming: Some(config), draining: draining_before, ..Rare::default() };
                return;
            }
            let taken = config.taken;
            let replaced = record.running.replace(config).filter(|old| old.taken != taken);
            if replaced.is_some() || record.since.is_none() {
                record.since = Some(now);
            }
            if let Some(old) = replaced.filter(|_| draining).or(draining_before) {
                record.rare().draining = Some(old);
            }
        });
    }

    /// A version was refused; what ran before still runs.
    pub fn rejected(
        &mut self,
        type_url: &TypeUrl,
        source: &Arc<str>,
        name: &str,
        version: &str,
        bytes: impl Into<Bytes>,
        detail: impl Into<String>,
    ) {
        let now = SystemTime::now();
        if let Some(book) = self.book_mut(type_url)
            && book.counts[State::Rejected as usize] >= MOST_REFUSED
            && !book.records.contains_key(&(name, &**source) as &dyn Named)
        {
            book.not_kept += 1;
            return;
        }
        self.change(type_url, source, name, |book, record, _| {
            record.offered = Some(book.offer(version, now));
            (record.missing, record.timed_out) = (false, false);
            let version = book.version(version);
            let rare = record.rare();
            rare.failure = None;
            rare.refusal = Some(Refusal { version, bytes: bytes.into(), detail: detail.into(), at: now });
        });
    }

    /// What is held came again, maybe under another version's name.
    pub fn repeated(&mut self, type_url: &TypeUrl, source: &Arc<str>, name: &str, version: &str) {
        let Some(book) = self.book_mut(type_url) else { return };
        let offer = book.offer(version, SystemTime::now());
        // nothing that counts states changes, so it is changed in its place
        if let Some(record) = book.records.get_mut(&(name, &**source) as &dyn Named) {
            record.offered = Some(offer);
        }
    }

    /// Its source gives nothing that can be used; forgotten with the next version that it gives.
    pub fn failed(&mut self, type_url: &TypeUrl, source: &Arc<str>, name: &str, detail: &Arc<str>) {
        self.change(type_url, source, name, |_, record, _| {
            record.rare().failure = Some(Failure { detail: detail.clone(), at: SystemTime::now() });
        });
    }

    /// What the version last accepted sets without effect; one text each, with the path of the field.
    pub fn warned(&mut self, type_url: &TypeUrl, source: &Arc<str>, name: &str, warnings: &[String]) {
        let set = (!warnings.is_empty()).then(|| self.warning_set(warnings));
        self.change(type_url, source, name, |_, record, _| record.warnings = set);
    }

    /// Its source says that there is none of this name. What runs stays in use: whatever refers to it still does.
    pub fn does_not_exist(&mut self, type_url: &TypeUrl, source: &Arc<str>, name: &str) {
        self.change(type_url, source, name, |_, record, _| {
            record.missing = true;
            record.rare = None;
        });
    }

    /// Its source says that there is no such resource, and nothing runs in its place.
    pub fn gone(&mut self, type_url: &TypeUrl, source: &Arc<str>, name: &str) {
        self.change(type_url, source, name, |_, record, _| {
            record.missing = true;
            record.running = None;
            record.rare = None;
        });
    }

    /// The first fetch took longer than `initial_fetch_timeout`.
    pub fn timed_out(&mut self, type_url: &TypeUrl, source: &Arc<str>, name: &str) {
        self.change(type_url, source, name, |_, record, _| record.timed_out = true);
    }

    /// Its source no longer has it. While connections are let go it is listed as draining; what is still asked for by
    /// name stays, as something that does not exist.
    pub fn removed(&mut self, type_url: &TypeUrl, source: &Arc<str>, name: &str) {
        if self.get(type_url, source, name).is_some_and(|record| record.requested.is_some()) {
            return self.does_not_exist(type_url, source, name);
        }
        let mut drains = false;
        self.change(type_url, source, name, |_, record, (_, draining)| {
            let earlier = record.rare.take().and_then(|rare| rare.draining);
            let last = record.running.take().or(earlier).filter(|_| draining);
            record.since = None;
            drains = last.is_some();
            if drains {
                record.rare().draining = last;
            }
        });
        if !drains {
            self.forget(type_url, source, name);
        }
    }

    /// Nobody wants it any more.
    pub fn forget(&mut self, type_url: &TypeUrl, source: &Arc<str>, name: &str) {
        let Some(book) = self.book_mut(type_url) else { return };
        let key: &dyn Named = &(name, &**source);
        if let Some(record) = book.records.remove(key) {
            book.uncount(record.state());
            book.unsettled.remove(key);
        }
    }

    /// A response was accepted as a whole.
    pub fn set_version(&mut self, type_url: &TypeUrl, version: &str) {
        if let Some(book) = self.book_mut(type_url) {
            book.version = book.version(version);
        }
    }

    /// The version of the last response that was accepted as a whole.
    pub fn version(&self, type_url: &TypeUrl) -> &str {
        self.book(type_url).map_or("", |book| &book.version)
    }

    /// Records of a type, by name.
    pub fn of<'a>(&'a self, type_url: &TypeUrl) -> impl Iterator<Item = (&'a Id, &'a Record)> + use<'a> {
        Api::of(type_url).into_iter().flat_map(|api| self.of_api(api))
    }

    fn of_api(&self, api: Api) -> impl Iterator<Item = (&Id, &Record)> {
        self.books[api as usize].records.iter().map(|(id, record)| (id, &**record))
    }

    pub fn get(&self, type_url: &TypeUrl, source: &str, name: &str) -> Option<&Record> {
        self.book(type_url)?.records.get(&(name, source) as &dyn Named).map(|record| &**record)
    }

    /// The record of a resource that comes from there.
    pub fn from_source(&self, type_url: &TypeUrl, source: &ConfigSourceKind, name: &str) -> Option<&Record> {
        self.get(type_url, self.sources.known(source)?, name)
    }

    /// The first record of this name, wherever it comes from: types that are asked for as a whole have one.
    pub fn named(&self, type_url: &TypeUrl, name: &str) -> Option<&Record> {
        let first: &dyn Named = &(name, "");
        let from = (Bound::Included(first), Bound::Unbounded);
        let (id, record) = self.book(type_url)?.records.range::<dyn Named, _>(from).next()?;
        (*id.name == *name).then_some(record)
    }

    /// Whether the bootstrap has it.
    pub fn is_static(&self, type_url: &TypeUrl, name: &str) -> bool {
        self.get(type_url, source::BOOTSTRAP, name).is_some()
    }

    /// Refusals of a type that found no room since this was last asked.
    fn take_not_kept(&mut self, api: Api) -> u64 {
        std::mem::take(&mut self.books[api as usize].not_kept)
    }

    /// How many resources of a type are in this state, as far as is known since [`Ledger::settle`].
    pub fn count(&self, api: Api, state: State) -> usize {
        self.books[api as usize].counts[state as usize]
    }

    /// Asks the managers what became of resources that warmed or drained when last heard of.
    pub fn settle(&mut self) {
        for api in Api::ALL {
            let book = &mut self.books[api as usize];
            let all: Vec<Id> = book.unsettled.iter().cloned().collect();
            for id in all {
                let warming = self.standing.is_warming(api, &id.name);
                let draining = self.standing.is_draining(api, &id.name);
                book.settle(&id, warming, draining);
            }
        }
    }

    fn book(&self, type_url: &TypeUrl) -> Option<&Book> {
        Api::of(type_url).map(|api| &self.books[api as usize])
    }

    fn book_mut(&mut self, type_url: &TypeUrl) -> Option<&mut Book> {
        Api::of(type_url).map(|api| &mut self.books[api as usize])
    }

    /// Changes a record, made when it is new; tells the change whether its manager warms or drains a version of it.
    /// Types that no API of Envoy's has are not written down.
    fn change(
        &mut self,
        type_url: &TypeUrl,
        source: &Arc<str>,
        name: &str,
        change: impl FnOnce(&mut Book, &mut Record, (bool, bool)),
    ) {
        let Some(api) = Api::of(type_url) else { return };
        let standing = (self.standing.is_warming(api, name), self.standing.is_draining(api, name));
        let book = &mut self.books[api as usize];
        // taken out while it is changed, so that the change can have the book too
        let (id, mut record) = match book.records.remove_entry(&(name, &**source) as &dyn Named) {
            Some((id, record)) => {
                book.uncount(record.state());
                (id, record)
            }
            None => (Id { name: Arc::from(name), source: source.clone() }, Box::default()),
        };
        change(book, &mut record, standing);
        record.tidy();
        book.put(id, record);
    }

    fn warning_set(&mut self, warnings: &[String]) -> Arc<[Arc<str>]> {
        let texts = || warnings.iter().take(MOST_WARNINGS_EACH);
        if texts().map(String::as_str).eq(self.same_warnings.iter().map(|known| &**known)) {
            return self.same_warnings.clone();
        }
        let set: Arc<[Arc<str>]> = texts()
            .map(|text| match self.warnings.get(text.as_str()) {
                Some(known) => known.clone(),
                None => {
                    let text: Arc<str> = Arc::from(text.as_str());
                    if self.warnings.len() < MOST_WARNINGS {
                        self.warnings.insert(text.clone());
                    }
                    text
                }
            })
            .collect();
        self.same_warnings = set.clone();
        set
    }
}

impl Book {
    fn version(&mut self, version: &str) -> Arc<str> {
        if *self.last_version != *version {
            self.last_version = Arc::from(version);
        }
        self.last_version.clone()
    }

    fn offer(&mut self, version: &str, at: SystemTime) -> Arc<Offer> {
        let of_now = |offer: &&Arc<Offer>| {
            *offer.version == *version && at.duration_since(offer.at).is_ok_and(|since| since < SAME_RESPONSE)
        };
        if let Some(offer) = self.last_offer.as_ref().filter(of_now) {
            return offer.clone();
        }
        let offer = Arc::new(Offer { version: self.version(version), at });
        self.last_offer = Some(offer.clone());
        offer
    }

    fn put(&mut self, id: Id, record: Box<Record>) {
        self.counts[record.state() as usize] += 1;
        if record.is_unsettled() {
            self.unsettled.insert(id.clone());
        } else if !self.unsettled.is_empty() {
            self.unsettled.remove(&id);
        }
        self.records.insert(id, record);
    }

    fn uncount(&mut self, state: State) {
        self.counts[state as usize] -= 1;
    }

    fn settle(&mut self, id: &Id, warming: bool, draining: bool) {
        let Some((id, mut record)) = self.records.remove_entry(id) else { return };
        self.uncount(record.state());
        if let Some(rare) = &mut record.rare {
            let warm = rare.warming.take_if(|_| !warming);
            let replaced = match warm {
                Some(config) => {
                    record.since = Some(SystemTime::now());
                    record.running.replace(config)
                }
                None => None,
            };
            rare.draining = replaced.or(rare.draining.take()).filter(|_| draining);
        }
        record.tidy();
        let gone = record.running.is_none() && record.rare.is_none() && record.requested.is_none();
        if gone && !record.missing {
            self.unsettled.remove(&id);
            return;
        }
        self.put(id, record);
    }
}

#[cfg(test)]
mod tests;
