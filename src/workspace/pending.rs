//! Caps the dials that are pending to one target, and remembers which dials the target has
//! answered.
//!
//! A dial that is ready at its first poll takes no slot; its call reads one counter. A dial that is
//! pending holds a [`Slot`]. While a target has no free slot, later calls wait in its queue, first
//! in, first out, before they call the dial service.

use crate::{Target, sync::lock};
use std::{
    collections::BTreeMap,
    pin::Pin,
    ptr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tokio::{
    sync::oneshot,
    time::{Duration, Instant},
};

/// The pending dials of one workspace.
#[derive(Debug)]
pub(crate) struct PendingDials {
    at_most: usize,
    /// The number of calls that hold a slot or wait for one. While there are fewer than `at_most`,
    /// every target has a free slot.
    calls: Arc<AtomicUsize>,
    /// The targets with slots in use, and some whose last slot was returned.
    gates: Mutex<Vec<Arc<Gate>>>,
}

/// The slots of one target.
///
/// More than `at_most` may be in use, taken by threads that started their dials at the same
/// instant. The next slots that are returned make up for them.
#[derive(Debug)]
struct Gate {
    target: Arc<Target>,
    at_most: usize,
    /// The number of calls that hold a slot or wait for one.
    calls: AtomicUsize,
    /// The same for all targets of the workspace.
    all_calls: Arc<AtomicUsize>,
    /// A call enters and leaves the queue, and is counted, with the queue locked. So the calls that
    /// are not in the queue hold a slot.
    queue: Mutex<CallQueue>,
    opened: Instant,
    /// When the latest of the answered dials began, in nanoseconds after `opened`; zero if none was
    /// answered.
    answered_began: AtomicU64,
    /// When a dial was answered last, likewise.
    answered_at: AtomicU64,
    /// When a dial was last started over to find out whether the target answers.
    probed: Mutex<Option<Instant>>,
}

/// The calls that wait for a slot, by their number. The first of them is the next to get one.
#[derive(Debug, Default)]
struct CallQueue {
    calls: BTreeMap<u64, oneshot::Sender<Slot>>,
    next_number: u64,
}

/// The right to have a pending dial. Returned when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    gate: Arc<Gate>,
}

/// A call that waits for a slot. If it is dropped before, the next call in the queue gets its turn.
#[derive(Debug)]
pub(crate) struct Queued {
    gate: Arc<Gate>,
    number: u64,
    slot: oneshot::Receiver<Slot>,
}

pub(crate) type Queue = Pin<Box<Queued>>;

/// The other dials to the same target that were answered while one is pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Answers {
    #[default]
    None,
    /// Only dials that began earlier. So the agent was alive after this one began.
    Earlier,
    /// A dial that began later. So this one is lost.
    Later,
}

/// The reply to a call that asks to start its hanging dial over although nothing shows that the
/// dial is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    Granted,
    /// Another call has started its dial over. The result is to be seen by this instant.
    Wait(Instant),
    /// That did not help, and it is too early for the next attempt.
    InVain,
}

/// How many dials are pending, and how many calls wait to dial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) pending: u64,
    pub(crate) queued: u64,
}

impl PendingDials {
    pub(crate) fn new(at_most: usize) -> Self {
        Self { at_most, calls: Arc::default(), gates: Mutex::default() }
    }

    /// Returns the queue of the target if a dial to it must wait. On the hot path: one atomic load.
    #[inline]
    pub(crate) fn queue(&self, target: &Target) -> Option<Queue> {
        if self.calls.load(Ordering::Acquire) < self.at_most {
            return None;
        }
        let gate = find(&self.gates(), target)?.clone();
        Gate::queue(&gate).map(Box::pin)
    }

    /// Takes a slot for a dial that was begun without one and is pending.
    pub(crate) fn enter(&self, target: &Arc<Target>) -> Slot {
        let mut gates = self.gates();
        let gate = match find(&gates, target) {
            Some(gate) => Arc::clone(gate),
            None => {
                gates.retain(|gate| Arc::strong_count(gate) > 1);
                let all_calls = Arc::clone(&self.calls);
                let gate = Arc::new(Gate::new(Arc::clone(target), self.at_most, all_calls));
                gates.push(Arc::clone(&gate));
                gate
            }
        };
        drop(gates);
        Gate::enter(gate)
    }

    /// Returns `true` if a dial is pending or a call waits in a queue.
    pub(crate) fn is_in_use(&self) -> bool {
        self.calls.load(Ordering::Relaxed) > 0
    }

    /// Counts the pending dials and the calls that wait to dial.
    pub(crate) fn count(&self) -> Counts {
        let mut counts = Counts::default();
        for gate in self.gates().iter() {
            let queue = lock(&gate.queue);
            counts.pending += gate.in_use(&queue) as u64;
            counts.queued += queue.calls.len() as u64;
        }
        counts
    }

    /// Records that the target has answered a dial, if other dials are pending. `times`: when it
    /// began, and now.
    #[inline]
    pub(crate) fn answered(&self, target: &Target, times: impl FnOnce() -> (Instant, Instant)) {
        if self.is_in_use()
            && let Some(gate) = find(&self.gates(), target)
        {
            let (began, now) = times();
            gate.answered_began.fetch_max(gate.nanos(began), Ordering::Relaxed);
            gate.answered_at.fetch_max(gate.nanos(now), Ordering::Relaxed);
        }
    }

    fn gates(&self) -> MutexGuard<'_, Vec<Arc<Gate>>> {
        lock(&self.gates)
    }
}

fn find<'a>(gates: &'a [Arc<Gate>], target: &Target) -> Option<&'a Arc<Gate>> {
    gates.iter().find(|gate| ptr::eq(&*gate.target, target) || gate.target.same_endpoint(target))
}

impl Gate {
    fn new(target: Arc<Target>, at_most: usize, all_calls: Arc<AtomicUsize>) -> Self {
        Self {
            target,
            at_most,
            calls: AtomicUsize::new(0),
            all_calls,
            queue: Mutex::default(),
            opened: Instant::now(),
            answered_began: AtomicU64::new(0),
            answered_at: AtomicU64::new(0),
            probed: Mutex::default(),
        }
    }

    /// Counts a call that holds a slot or waits for one. Returns how many there were before.
    fn count(&self) -> usize {
        self.all_calls.fetch_add(1, Ordering::AcqRel);
        self.calls.fetch_add(1, Ordering::AcqRel)
    }

    /// Counts a call that has ended. Returns how many there were before.
    fn uncount(&self) -> usize {
        self.all_calls.fetch_sub(1, Ordering::AcqRel);
        self.calls.fetch_sub(1, Ordering::AcqRel)
    }

    fn enter(gate: Arc<Self>) -> Slot {
        gate.count();
        Slot { gate }
    }

    /// Joins the queue if no slot is free.
    fn queue(gate: &Arc<Self>) -> Option<Queued> {
        let mut queue = lock(&gate.queue);
        if gate.calls.load(Ordering::Acquire) < gate.at_most {
            return None;
        }
        let number = queue.next_number;
        queue.next_number += 1;
        let (sender, slot) = oneshot::channel();
        queue.calls.insert(number, sender);
        gate.count();
        drop(queue);
        // Slots that were returned since the look above found nobody in the queue.
        gate.pass_on();
        Some(Queued { gate: Arc::clone(gate), number, slot })
    }

    /// Gives the free slots to the first calls in the queue.
    fn pass_on(self: &Arc<Self>) {
        loop {
            let mut queue = lock(&self.queue);
            if self.in_use(&queue) >= self.at_most {
                return;
            }
            let Some((_, next)) = queue.calls.pop_first() else { return };
            drop(queue);
            // A call that has just left the queue returns its slot.
            let _ = next.send(Slot { gate: Arc::clone(self) });
        }
    }

    /// Returns how many slots are in use.
    fn in_use(&self, queue: &CallQueue) -> usize {
        self.calls.load(Ordering::Acquire).saturating_sub(queue.calls.len())
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.opened).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Slot {
    /// Returns `true` if a dial to this target needs no other slot.
    pub(crate) fn is_for(&self, target: &Target) -> bool {
        self.gate.target.same_endpoint(target)
    }

    /// Returns what the target has answered since the dial that holds this slot began.
    pub(crate) fn answers_since(&self, began: Instant) -> Answers {
        let gate = &self.gate;
        if gate.answered_at.load(Ordering::Relaxed) == 0 {
            return Answers::None;
        }
        let began = gate.nanos(began);
        if gate.answered_began.load(Ordering::Relaxed) > began {
            Answers::Later
        } else if gate.answered_at.load(Ordering::Relaxed) > began {
            Answers::Earlier
        } else {
            Answers::None
        }
    }

    /// Returns `true` if calls wait in the target's queue.
    pub(crate) fn is_awaited(&self) -> bool {
        self.gate.calls.load(Ordering::Relaxed) > self.gate.at_most
    }

    /// Asks to start a hanging dial over. Granted once in `every`; the result is to be seen after
    /// `delay`.
    pub(crate) fn probe(&self, now: Instant, every: Duration, delay: Duration) -> Probe {
        let mut probed = lock(&self.gate.probed);
        match *probed {
            Some(at) if now < at + delay => Probe::Wait(at + delay),
            Some(at) if now < at + every => Probe::InVain,
            _ => {
                *probed = Some(now);
                Probe::Granted
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Otherwise the queue is empty, or another slot was returned whose owner is about to look.
        if self.gate.uncount() > self.gate.at_most {
            self.gate.pass_on();
        }
    }
}

impl Future for Queued {
    type Output = Slot;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Slot> {
        let slot = Pin::new(&mut self.slot).poll(cx);
        // Unreachable: who takes a sender out of the queue sends a slot.
        slot.map(|slot| slot.unwrap_or_else(|_| Gate::enter(Arc::clone(&self.gate))))
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        let mut queue = lock(&self.gate.queue);
        // Otherwise the slot was sent, or is about to be, and returns when it is dropped.
        if queue.calls.remove(&self.number).is_some() {
            self.gate.uncount();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AgentId;
    use futures_util::FutureExt;
    use uuid::Uuid;

    fn target(agent: u128) -> Arc<Target> {
        Arc::new(Target::new(AgentId::new(Uuid::from_u128(agent))))
    }

    fn dials(at_most: usize) -> Arc<PendingDials> {
        Arc::new(PendingDials::new(at_most))
    }

    #[test]
    fn a_dial_needs_no_queue_while_there_is_a_free_slot() {
        let (dials, a) = (dials(2), target(1));
        assert!(dials.queue(&a).is_none());
        let first = dials.enter(&a);
        assert!(dials.queue(&a).is_none());
        let second = dials.enter(&a);
        assert!(dials.queue(&a).is_some());
        // Each target has its own slots.
        assert!(dials.queue(&target(2)).is_none());
        drop(first);
        assert!(dials.queue(&a).is_none());
        drop(second);
        assert_eq!(dials.calls.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_queue_is_first_in_first_out_for_newcomers_too() {
        let (dials, a) = (dials(1), target(1));
        let held = dials.enter(&a);
        let mut queues: Vec<Queue> = (0..3).map(|_| dials.queue(&a).unwrap()).collect();
        assert!(queues.iter_mut().all(|queue| queue.now_or_never().is_none()));
        drop(held);
        // The slot belongs to the first one from here on, even before that is polled.
        let mut newcomer = dials.queue(&a).expect("a newcomer waits");
        assert!(newcomer.as_mut().now_or_never().is_none());
        assert!(queues[1].as_mut().now_or_never().is_none());
        let slot = queues[0].as_mut().now_or_never().expect("the first one's turn");
        assert!(queues[1].as_mut().now_or_never().is_none());
        drop(slot);
        // One that is dropped when it has its turn passes the turn on.
        drop(queues.remove(1));
        let slot = queues[1].as_mut().now_or_never().expect("the third one's turn");
        drop(slot);
        assert!(newcomer.now_or_never().is_some());
        drop(queues);
        assert_eq!(dials.calls.load(Ordering::Relaxed), 0);
        assert!(dials.queue(&a).is_none());
    }

    #[test]
    fn slots_taken_in_excess_are_made_up_for() {
        let (dials, a) = (dials(2), target(1));
        let mut slots: Vec<Slot> = (0..4).map(|_| dials.enter(&a)).collect();
        for left in [3, 2] {
            slots.pop();
            assert!(dials.queue(&a).is_some(), "{left} are left");
        }
        slots.pop();
        assert!(dials.queue(&a).is_none());
    }

    #[test]
    fn targets_without_pending_dials_are_not_kept() {
        let dials = dials(2);
        for agent in 0..100 {
            drop(dials.enter(&target(agent)));
        }
        assert_eq!(dials.gates().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_tells_which_dials_were_answered() {
        let (dials, a, zero) = (dials(2), target(1), Instant::now());
        let at = |millis| zero + Duration::from_millis(millis);
        let slot = dials.enter(&a);
        assert_eq!(slot.answers_since(at(10)), Answers::None);
        dials.answered(&target(2), || (at(20), at(30)));
        dials.answered(&a, || (at(5), at(9)));
        assert_eq!(slot.answers_since(at(10)), Answers::None);
        dials.answered(&a, || (at(10), at(30)));
        assert_eq!(slot.answers_since(at(10)), Answers::Earlier);
        dials.answered(&a, || (at(11), at(29)));
        assert_eq!(slot.answers_since(at(10)), Answers::Later);
        assert_eq!(slot.answers_since(at(11)), Answers::Earlier);
        assert_eq!(slot.answers_since(at(30)), Answers::None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_is_granted_in_an_interval() {
        let (dials, a, zero) = (dials(2), target(1), Instant::now());
        let at = |millis| zero + Duration::from_millis(millis);
        let (one, two) = (dials.enter(&a), dials.enter(&a));
        let probe = |slot: &Slot, now| {
            slot.probe(at(now), Duration::from_millis(2_000), Duration::from_millis(250))
        };
        assert_eq!(probe(&one, 0), Probe::Granted);
        assert_eq!(probe(&two, 0), Probe::Wait(at(250)));
        assert_eq!(probe(&two, 250), Probe::InVain);
        assert_eq!(probe(&one, 1_999), Probe::InVain);
        assert_eq!(probe(&two, 2_000), Probe::Granted);
    }
}
