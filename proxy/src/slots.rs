//! Places for resources that arrive later: secrets, routes, endpoints.
//!
//! Whoever needs such a resource asks its [`Store`] for the [`Slot`] of its name; the first asker makes discovery subscribe
//! to it, the last one to let go makes it unsubscribe. A slot is filled, and refilled, by discovery; readers load it
//! without a lock.

use crate::config::ConfigError;
use crate::config::model::ConfigSource;
use arc_swap::ArcSwapOption;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{mpsc, watch};

/// What kind of resource a slot waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Route,
    Secret,
    Assignment,
    /// Configuration of a filter.
    Extension,
}

/// Name and source of a resource. `source` is `None` for resources given in the bootstrap.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub name: Arc<str>,
    pub source: Option<ConfigSource>,
}

/// Told to discovery when a slot is first asked for and when nobody holds it any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    Subscribe(Kind, Key),
    Unsubscribe(Kind, Key),
}

/// How far a slot has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing has arrived yet.
    Waiting,
    /// Has held a value since `generation` updates.
    Filled(u64),
    /// The wait ended without a value: the resource does not exist, or its initial fetch timed out.
    Missing,
}

/// Makes what a follower has prepared its own.
pub type Commit = Box<dyn FnOnce()>;

/// Somebody who holds a slot and has a say in what it may hold. Called on the control thread.
pub trait Follower<T>: Send + Sync {
    /// Makes ready for a value that is about to fill the slot; nothing is in use before the commit.
    ///
    /// # Errors
    /// Why this value must not be used: no holder gets it, and what the slot holds stays.
    fn prepare(&self, value: &Arc<T>) -> Result<Commit, ConfigError>;

    /// The source has it no longer.
    fn removed(&self) {}
}

/// The place of one resource. `load` is wait-free and meant for the path of a request.
pub struct Slot<T> {
    pub key: Key,
    kind: Kind,
    /// Where the subscription's stats stand, as the first asker said.
    stats_prefix: Box<str>,
    current: ArcSwapOption<T>,
    /// Of what it holds.
    version: Mutex<Arc<str>>,
    progress: watch::Sender<Progress>,
    followers: Mutex<Vec<Weak<dyn Follower<T>>>>,
    wants: mpsc::UnboundedSender<Want>,
}

impl<T> Slot<T> {
    /// Asks `follower` about every value from now on, and about the one that is there already.
    ///
    /// # Errors
    /// What it has against that one.
    pub fn follow(&self, follower: &Arc<dyn Follower<T>>) -> Result<(), ConfigError> {
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        followers.retain(|known| known.strong_count() > 0);
        followers.push(Arc::downgrade(follower));
        drop(followers);
        if let Some(value) = self.load() {
            follower.prepare(&value)?();
        }
        Ok(())
    }

    fn followers(&self) -> Vec<Arc<dyn Follower<T>>> {
        // not asked under the lock: what they build may let go of other slots
        self.followers.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    pub fn load(&self) -> Option<Arc<T>> {
        self.current.load_full()
    }

    /// As `load`, without touching the reference count.
    pub fn borrow(&self) -> arc_swap::Guard<Option<Arc<T>>> {
        self.current.load()
    }

    /// Ends with its dot, or is empty.
    pub fn stats_prefix(&self) -> &str {
        &self.stats_prefix
    }

    /// The version of what it holds, for people; empty where none was given. Not for the path of a request.
    pub fn version(&self) -> Arc<str> {
        self.version.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Whether warming need not wait for this slot any longer.
    pub fn is_settled(&self) -> bool {
        self.progress() != Progress::Waiting
    }

    /// Returns once a value has arrived or the wait was given up.
    pub async fn settled(&self) {
        let mut progress = self.progress.subscribe();
        // the sender lives in self, so this cannot fail
        let _ = progress.wait_for(|p| *p != Progress::Waiting).await;
    }

    /// A receiver that sees every later change.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    fn fill(&self, value: Arc<T>, version: Arc<str>) {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = version;
        self.current.store(Some(value));
        self.progress.send_modify(|p| {
            *p = match *p {
                Progress::Filled(n) => Progress::Filled(n + 1),
                Progress::Waiting | Progress::Missing => Progress::Filled(1),
            }
        });
    }

    fn give_up(&self) {
        self.progress.send_if_modified(|p| {
            let waiting = *p == Progress::Waiting;
            if waiting {
                *p = Progress::Missing;
            }
            waiting
        });
    }
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        // discovery may be gone already: at shutdown nobody needs to unsubscribe
        let _ = self.wants.send(Want::Unsubscribe(self.kind, self.key.clone()));
    }
}

/// All slots of one kind.
pub struct Store<T> {
    kind: Kind,
    wants: mpsc::UnboundedSender<Want>,
    slots: Mutex<HashMap<Key, Weak<Slot<T>>>>,
}

impl<T> Store<T> {
    pub fn new(kind: Kind, wants: mpsc::UnboundedSender<Want>) -> Store<T> {
        Store { kind, wants, slots: Mutex::default() }
    }

    /// The slot of this name and source; made, and subscribed to, when it is the first time.
    pub fn slot(&self, key: Key) -> Arc<Slot<T>> {
        self.slot_counted(key, "")
    }

    /// As `slot`; the stats of the subscription stand under this prefix if the slot is new.
    pub fn slot_counted(&self, key: Key, stats_prefix: &str) -> Arc<Slot<T>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(&key).and_then(Weak::upgrade) {
            return slot;
        }
        let slot = Arc::new(Slot {
            key: key.clone(),
            kind: self.kind,
            stats_prefix: stats_prefix.into(),
            current: ArcSwapOption::empty(),
            version: Mutex::default(),
            progress: watch::Sender::new(Progress::Waiting),
            followers: Mutex::default(),
            wants: self.wants.clone(),
        });
        slots.insert(key.clone(), Arc::downgrade(&slot));
        // dead entries are cleaned out where the table would double: thousands of first askers stay linear
        if slots.len().is_power_of_two() {
            slots.retain(|_, slot| slot.strong_count() > 0);
        }
        // a closed channel means shutdown
        let _ = self.wants.send(Want::Subscribe(self.kind, key));
        slot
    }

    /// The slot of this name and source, if somebody holds it.
    pub fn get(&self, key: &Key) -> Option<Arc<Slot<T>>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.get(key)?.upgrade();
        if slot.is_none() {
            // what is left of it takes as much memory as before
            slots.remove(key);
            if slots.len() < slots.capacity() / 8 {
                slots.shrink_to_fit();
            }
        }
        slot
    }

    /// Fills the slot, if somebody holds it; says whether somebody does.
    pub fn fill(&self, key: &Key, value: Arc<T>) -> bool {
        self.fill_version(key, value, Arc::default())
    }

    /// As `fill`, with the version of what it is filled with.
    pub fn fill_version(&self, key: &Key, value: Arc<T>, version: Arc<str>) -> bool {
        self.get(key).map(|slot| slot.fill(value, version)).is_some()
    }

    /// Fills the slots of all these keys if none of their followers objects. Slots that nobody holds are passed over.
    ///
    /// # Errors
    /// The first objection; no slot was filled.
    pub fn fill_agreed(&self, keys: &[Key], value: &Arc<T>, version: &Arc<str>) -> Result<(), ConfigError> {
        let commits = self.prepare(keys, value)?;
        commits.into_iter().for_each(|commit| commit());
        keys.iter().filter_map(|key| self.get(key)).for_each(|slot| slot.fill(value.clone(), version.clone()));
        Ok(())
    }

    /// Whether followers of these slots object to a value that is to fill them later.
    ///
    /// # Errors
    /// The first objection.
    pub fn ask(&self, keys: &[Key], value: &Arc<T>) -> Result<(), ConfigError> {
        self.prepare(keys, value).map(drop)
    }

    fn prepare(&self, keys: &[Key], value: &Arc<T>) -> Result<Vec<Commit>, ConfigError> {
        let slots = keys.iter().filter_map(|key| self.get(key));
        slots.flat_map(|slot| slot.followers()).map(|follower| follower.prepare(value)).collect()
    }

    /// Takes away what the slot holds: its source has it no longer, and nothing is better than that.
    pub fn clear(&self, key: &Key) {
        if let Some(slot) = self.get(key) {
            slot.current.store(None);
            slot.followers().iter().for_each(|follower| follower.removed());
            slot.progress.send_replace(Progress::Missing);
        }
    }

    /// What the slot holds was given again, as this version.
    pub fn refresh(&self, key: &Key, version: Arc<str>) {
        if let Some(slot) = self.get(key)
            && let Some(value) = slot.load()
        {
            slot.fill(value, version);
        }
    }

    /// Ends the wait for a first value (`initial_fetch_timeout`, or the source says that there is none).
    pub fn give_up(&self, key: &Key) {
        if let Some(slot) = self.get(key) {
            slot.give_up();
        }
    }

    /// Every slot that somebody holds.
    pub fn all(&self) -> Vec<Arc<Slot<T>>> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.values().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key { name: name.into(), source: None }
    }

    #[test]
    fn the_first_asker_subscribes_and_the_last_unsubscribes() {
        let (tx, mut rx) = mpsc::unbounded_channel();
        let store: Store<u32> = Store::new(Kind::Route, tx);
        let a = store.slot(key("r"));
        let b = store.slot(key("r"));
        assert_eq!(rx.try_recv().unwrap(), Want::Subscribe(Kind::Route, key("r")));
        assert!(rx.try_recv().is_err());
        assert!(store.fill(&key("r"), Arc::new(7)));
        assert_eq!((*a.load().unwrap(), b.progress()), (7, Progress::Filled(1)));
        drop(a);
        assert!(rx.try_recv().is_err());
        drop(b);
        assert_eq!(rx.try_recv().unwrap(), Want::Unsubscribe(Kind::Route, key("r")));
        assert_eq!(store.slots.lock().unwrap().len(), 1);
        assert!(!store.fill(&key("r"), Arc::new(8)));
        assert!(store.slots.lock().unwrap().is_empty(), "nothing is left of it");
    }

    #[tokio::test]
    async fn a_wait_can_be_given_up_and_still_be_filled_later() {
        let (tx, _rx) = mpsc::unbounded_channel();
        let store: Store<u32> = Store::new(Kind::Secret, tx);
        let slot = store.slot(key("s"));
        assert!(!slot.is_settled());
        store.give_up(&key("s"));
        slot.settled().await;
        assert_eq!((slot.progress(), slot.load()), (Progress::Missing, None));
        store.fill(&key("s"), Arc::new(1));
        assert_eq!(slot.progress(), Progress::Filled(1));
        store.clear(&key("s"));
        assert_eq!((slot.progress(), slot.load()), (Progress::Missing, None));
    }

    /// Takes no number below its own; remembers what it took.
    struct AtLeast(u32, Arc<Mutex<Vec<u32>>>);

    impl Follower<u32> for AtLeast {
        fn prepare(&self, value: &Arc<u32>) -> Result<Commit, ConfigError> {
            let (value, taken) = (**value, self.1.clone());
            match value >= self.0 {
                true => Ok(Box::new(move || taken.lock().unwrap().push(value))),
                false => Err(ConfigError::new("", format!("{value} is less than {}", self.0))),
            }
        }
    }

    #[test]
    fn one_follower_that_objects_keeps_a_value_from_all() {
        let (tx, _rx) = mpsc::unbounded_channel();
        let store: Store<u32> = Store::new(Kind::Secret, tx);
        let other = Key { name: "other".into(), source: None };
        let (a, b) = (store.slot(key("a")), store.slot(other.clone()));
        let taken = Arc::new(Mutex::new(Vec::new()));
        let keys = [key("a"), other];
        let (low, high): (Arc<dyn Follower<u32>>, Arc<dyn Follower<u32>>) =
            (Arc::new(AtLeast(1, taken.clone())), Arc::new(AtLeast(5, taken.clone())));
        a.follow(&low).unwrap();
        b.follow(&high).unwrap();
        assert!(store.fill_agreed(&keys, &Arc::new(3), &Arc::default()).is_err());
        assert_eq!((a.load(), b.load(), taken.lock().unwrap().len()), (None, None, 0));
        drop(high);
        store.fill_agreed(&keys, &Arc::new(3), &Arc::default()).unwrap();
        assert_eq!((a.load(), b.load()), (Some(Arc::new(3)), Some(Arc::new(3))));
        let late: Arc<dyn Follower<u32>> = Arc::new(AtLeast(4, taken.clone()));
        assert!(a.follow(&late).is_err());
        assert_eq!(*taken.lock().unwrap(), [3]);
    }
}
