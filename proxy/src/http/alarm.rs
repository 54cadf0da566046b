//! Timers of the exchanges of one connection, behind a single tokio timer.
//!
//! Nearly every request has a timeout (15 s by default) and nearly none runs into it. Setting one here stores an instant;
//! the connection's timer is moved only when the new instant is earlier than the one it is set to, which in steady traffic
//! happens once per timeout, not once per request.

use futures_util::task::AtomicWaker;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use tokio::time::Instant;

/// Wakes a task and remembers that it did, so that the task polls its rare futures only when they asked for it.
#[derive(Default)]
pub(super) struct Gate {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Gate {
    pub fn register(&self, waker: &Waker) {
        self.task.register(waker);
    }

    /// Whether it was woken since the last call.
    pub fn take(&self) -> bool {
        self.rung.load(Ordering::Acquire) && self.rung.swap(false, Ordering::AcqRel)
    }

    pub fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

#[derive(Default)]
struct Slot {
    at: Option<Instant>,
    fired: bool,
    waker: Option<Waker>,
}

/// The alarms of one connection.
pub(super) struct Alarms {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    /// When the connection's timer will fire.
    armed: Cell<Option<Instant>>,
    pub gate: Arc<Gate>,
}

/// One alarm's place. Given back with [`Alarms::release`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AlarmId(u32);

impl Alarms {
    pub fn new() -> Alarms {
        Alarms { slots: RefCell::default(), free: RefCell::default(), armed: Cell::new(None), gate: Arc::default() }
    }

    pub fn acquire(&self) -> AlarmId {
        if let Some(id) = self.free.borrow_mut().pop() {
            return AlarmId(id);
        }
        let mut slots = self.slots.borrow_mut();
        slots.push(Slot::default());
        // bounded by the streams of one connection
        AlarmId(slots.len() as u32 - 1)
    }

    pub fn release(&self, id: AlarmId) {
        if let Some(slot) = self.slots.borrow_mut().get_mut(id.0 as usize) {
            *slot = Slot::default();
            self.free.borrow_mut().push(id.0);
        }
    }

    /// Sets, moves or (with `None`) clears an alarm.
    pub fn set(&self, id: AlarmId, at: Option<Instant>) {
        if let Some(slot) = self.slots.borrow_mut().get_mut(id.0 as usize) {
            slot.at = at;
            slot.fired = false;
        }
        if let Some(at) = at {
            self.want(at);
        }
    }

    /// Makes sure that the connection looks at its timers at this instant.
    pub fn want(&self, at: Instant) {
        if self.armed.get().is_none_or(|armed| at < armed) {
            self.gate.ring();
        }
    }

    /// Ready when the alarm has fired; it is then cleared.
    pub fn poll(&self, id: AlarmId, cx: &mut Context<'_>) -> Poll<()> {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(id.0 as usize) else { return Poll::Pending };
        if slot.fired {
            slot.fired = false;
            slot.at = None;
            return Poll::Ready(());
        }
        if slot.at.is_some() && !slot.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            slot.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Fires every alarm that is due; returns the earliest of the others.
    pub fn fire(&self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for slot in self.slots.borrow_mut().iter_mut() {
            match slot.at {
                Some(at) if at <= now && !slot.fired => {
                    slot.fired = true;
                    if let Some(waker) = slot.waker.take() {
                        waker.wake();
                    }
                }
                Some(at) if !slot.fired => next = Some(next.map_or(at, |n| n.min(at))),
                _ => {}
            }
        }
        next
    }

    pub fn armed(&self) -> Option<Instant> {
        self.armed.get()
    }

    pub fn set_armed(&self, at: Option<Instant>) {
        self.armed.set(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn poll(alarms: &Alarms, id: AlarmId) -> Poll<()> {
        alarms.poll(id, &mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn only_an_earlier_alarm_disturbs_the_connection() {
        let alarms = Alarms::new();
        let now = Instant::now();
        let id = alarms.acquire();
        alarms.set(id, Some(now + Duration::from_secs(15)));
        assert!(alarms.gate.take());
        alarms.set_armed(alarms.fire(now));
        alarms.set(id, Some(now + Duration::from_secs(20)));
        assert!(!alarms.gate.take());
        alarms.set(id, Some(now + Duration::from_secs(1)));
        assert!(alarms.gate.take());
    }

    #[test]
    fn an_alarm_fires_once_and_its_place_is_used_again() {
        let alarms = Alarms::new();
        let now = Instant::now();
        let (a, b) = (alarms.acquire(), alarms.acquire());
        alarms.set(a, Some(now));
        alarms.set(b, Some(now + Duration::from_secs(9)));
        assert_eq!(poll(&alarms, a), Poll::Pending);
        assert_eq!(alarms.fire(now), Some(now + Duration::from_secs(9)));
        assert_eq!(
            (poll(&alarms, a), poll(&alarms, a), poll(&alarms, b)),
            (Poll::Ready(()), Poll::Pending, Poll::Pending)
        );
        alarms.release(a);
        assert_eq!(alarms.acquire(), a);
    }
}
