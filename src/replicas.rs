//! News from other processes: a task [follows](follow) their hints and [refreshes](refresh) the
//! rows in use, and sessions that [hold](holders) a connection are notified.

pub(crate) mod follow;
pub(crate) mod holders;
pub(crate) mod refresh;
