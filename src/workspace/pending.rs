//! Caps the dials that are pending to one target, and remembers which dials the target has
//! answered.
//!
//! A dial that is ready at its first poll takes no slot; its call reads one counter. A dial that is
//! pending holds a [`Slot`]. While a target has no free slot, later calls wait in its queue, first
//! in, first out, before they call the dial service.

use crate::{Target, sync::lock};
use futures_util::future::BoxFuture;
use std::{
    ptr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};
use tokio::{
    sync::Semaphore,
    time::{Duration, Instant},
};

/// The pending dials of one workspace.
#[derive(Debug)]
pub(crate) struct PendingDials {
    at_most: usize,
    /// The number of calls that hold a slot or wait for one. While there are fewer than `at_most`,
    /// every target has a free slot.
    calls: AtomicUsize,
    /// The targets with slots in use, and some whose last slot was returned.
    gates: Mutex<Vec<Arc<Gate>>>,
}

/// The slots of one target.
#[derive(Debug)]
struct Gate {
    target: Arc<Target>,
    free: Semaphore,
    /// The number of slots that were taken although none was free, by threads that started their
    /// dials at the same instant. The next slots that are returned make up for them.
    excess: AtomicUsize,
    opened: Instant,
    /// When the latest of the answered dials began, in nanoseconds after `opened`; zero if none was
    /// answered.
    answered_began: AtomicU64,
    /// When a dial was answered last, likewise.
    answered_at: AtomicU64,
    /// The number of calls that hold a slot or wait for one.
    calls: AtomicUsize,
    /// When a dial was last started over to find out whether the target answers.
    probed: Mutex<Option<Instant>>,
}

/// The right to have a pending dial. Returned when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    call: Call,
}

/// Counts a call that holds a slot or waits for one, until it is dropped.
#[derive(Debug)]
struct Call {
    dials: Arc<PendingDials>,
    gate: Arc<Gate>,
}

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

/// The reply to a call that asks to start its hanging dial over although nothing shows that the dial
/// is lost.
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

/// Waits for a slot. If it is dropped before, the next call in the queue gets its turn.
pub(crate) type Queue = BoxFuture<'static, Slot>;

impl PendingDials {
    pub(crate) fn new(at_most: usize) -> Self {
        let at_most = at_most.min(Semaphore::MAX_PERMITS);
        Self { at_most, calls: AtomicUsize::new(0), gates: Mutex::default() }
    }

    /// Returns the queue of the target if a dial to it must wait. On the hot path: one atomic load.
    #[inline]
    pub(crate) fn queue(self: &Arc<Self>, target: &Target) -> Option<Queue> {
        if self.calls.load(Ordering::Acquire) < self.at_most {
            return None;
        }
        self.queue_at(target)
    }

    fn queue_at(self: &Arc<Self>, target: &Target) -> Option<Queue> {
        let gate = find(&self.gates(), target)
            .filter(|gate| gate.free.available_permits() == 0)
            .cloned()?;
        let call = Call::new(self, gate);
        Some(Box::pin(async move {
            match call.gate.free.acquire().await {
                Ok(permit) => permit.forget(),
                // Unreachable, because the semaphore is never closed.
                Err(_) => call.gate.take(),
            }
            Slot { call }
        }))
    }

    /// Takes a slot for a dial that was begun without one and is pending.
    pub(crate) fn enter(self: &Arc<Self>, target: &Arc<Target>) -> Slot {
        let mut gates = self.gates();
        let gate = match find(&gates, target) {
            Some(gate) => Arc::clone(gate),
            None => {
                gates.retain(|gate| Arc::strong_count(gate) > 1);
                let gate = Arc::new(Gate::new(Arc::clone(target), self.at_most));
                gates.push(Arc::clone(&gate));
                gate
            }
        };
        drop(gates);
        gate.take();
        Slot { call: Call::new(self, gate) }
    }

    /// Returns `true` if a dial is pending or a call waits in a queue.
    pub(crate) fn is_in_use(&self) -> bool {
        self.calls.load(Ordering::Relaxed) > 0
    }

    /// Counts the pending dials and the calls that wait to dial.
    pub(crate) fn count(&self) -> Counts {
        let mut counts = Counts::default();
        for gate in self.gates().iter() {
            let taken = self.at_most.saturating_sub(gate.free.available_permits())
                + gate.excess.load(Ordering::Relaxed);
            let calls = gate.calls.load(Ordering::Relaxed);
            counts.pending += taken.min(calls) as u64;
            counts.queued += calls.saturating_sub(taken) as u64;
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
    fn new(target: Arc<Target>, at_most: usize) -> Self {
        Self {
            target,
            free: Semaphore::new(at_most),
            excess: AtomicUsize::new(0),
            opened: Instant::now(),
            answered_began: AtomicU64::new(0),
            answered_at: AtomicU64::new(0),
            calls: AtomicUsize::new(0),
            probed: Mutex::default(),
        }
    }

    fn take(&self) {
        match self.free.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(_) => {
                self.excess.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    fn give_back(&self) {
        let excess = self
            .excess
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |excess| excess.checked_sub(1));
        if excess.is_err() {
            self.free.add_permits(1);
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.opened).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Slot {
    /// Returns `true` if a dial to this target needs no other slot.
    pub(crate) fn is_for(&self, target: &Target) -> bool {
        self.call.gate.target.same_endpoint(target)
    }

    /// Returns what the target has answered since the dial that holds this slot began.
    pub(crate) fn answers_since(&self, began: Instant) -> Answers {
        let gate = &self.call.gate;
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
        let Call { dials, gate } = &self.call;
        gate.calls.load(Ordering::Relaxed) > dials.at_most
    }

    /// Asks to start a hanging dial over. Granted once in `every`; the result is to be seen after
    /// `delay`.
    pub(crate) fn probe(&self, now: Instant, every: Duration, delay: Duration) -> Probe {
        let mut probed = lock(&self.call.gate.probed);
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
        self.call.gate.give_back();
    }
}

impl Call {
    fn new(dials: &Arc<PendingDials>, gate: Arc<Gate>) -> Self {
        dials.calls.fetch_add(1, Ordering::AcqRel);
        gate.calls.fetch_add(1, Ordering::AcqRel);
        Self { dials: Arc::clone(dials), gate }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.gate.calls.fetch_sub(1, Ordering::AcqRel);
        self.dials.calls.fetch_sub(1, Ordering::AcqRel);
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
