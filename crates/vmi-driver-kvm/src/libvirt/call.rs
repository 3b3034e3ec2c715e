//! Calls into libvirt with a time limit.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{io, thread};

/// How a call failed to end.
#[derive(Debug)]
pub(super) enum CallError {
    /// It did not end in time. Its thread goes on until libvirt lets it.
    TimedOut,
    /// It could not be started, or panicked.
    Failed(io::Error),
}

/// Runs `call` on a thread of its own and waits for it, at most for `limit`: libvirt's calls wait for the daemon without any limit.
/// (libvirt keeps its last error per thread, so a call and the question for its error must not be divided.)
pub(super) fn with_limit<T: Send + 'static>(limit: Duration, call: impl FnOnce() -> T + Send + 'static) -> Result<T, CallError> {
    let (give, take) = mpsc::sync_channel(1);
    let thread = thread::Builder::new()
        .name("libvirt".to_owned())
        .spawn(move || {
            // Nobody listens any more after the time limit.
            let _ = give.send(call());
        })
        .map_err(CallError::Failed)?;
    match take.recv_timeout(limit) {
        Ok(value) => {
            let _ = thread.join();
            Ok(value)
        }
        Err(RecvTimeoutError::Timeout) => Err(CallError::TimedOut),
        Err(RecvTimeoutError::Disconnected) => Err(CallError::Failed(io::Error::other("the call into libvirt panicked"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_hangs_is_left_behind() {
        assert_eq!(with_limit(Duration::from_secs(10), || 7).unwrap(), 7);
        let (stop, wait) = mpsc::channel::<()>();
        let hung = with_limit(Duration::from_millis(50), move || wait.recv());
        assert!(matches!(hung, Err(CallError::TimedOut)));
        drop(stop);
    }
}
