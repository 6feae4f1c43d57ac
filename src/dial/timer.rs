//! The one timer of a call.

use pin_project::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is part of the call's future, and is not made before there is something to wait
/// for.
#[pin_project]
#[derive(Default)]
pub(crate) struct Timer {
    #[pin]
    sleep: Option<Sleep>,
}

impl Timer {
    pub(crate) fn set(self: Pin<&mut Self>, until: Instant) {
        let mut sleep = self.project().sleep;
        match sleep.as_mut().as_pin_mut() {
            Some(sleep) => sleep.reset(until),
            None => sleep.set(Some(sleep_until(until))),
        }
    }

    /// Returns whether the instant has come that was set last; wakes the task when it does.
    pub(crate) fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.project().sleep.as_pin_mut() {
            Some(sleep) => sleep.poll(cx),
            None => Poll::Pending,
        }
    }
}
