//! Connections that somebody else has made, and guests that somebody else stops and starts.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::client::{GdbClient, State};
use super::connection::Connection;
use super::error::GdbError;
use super::{GdbOptions, StopReason};
use crate::deadline::Deadline;

impl GdbClient {
    /// As [`connect`](Self::connect), over a connection that stands already. `name` is for messages.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn over(stream: UnixStream, name: &str, options: &GdbOptions) -> Result<Self, GdbError> {
        stream.set_nonblocking(true).map_err(|error| {
            let cause = super::GdbCause::Io(Arc::new(error));
            GdbError::new(&name.into(), "connecting", cause)
        })?;
        Self::handshake(Connection::new(stream.into()), name.into(), options)
    }

    /// Removes all traps and closes the connection without detaching: the guest stands still until QEMU's monitor lets it go on. QEMU takes a
    /// closed connection for nothing.
    ///
    /// # Errors
    /// What stopping the guest and removing the traps report; the guest runs on then, as after [`detach`](Self::detach).
    pub fn leave_stopped(mut self) -> Result<(), GdbError> {
        if self.state == State::Running {
            self.interrupt()?;
        }
        if self.watched {
            let deadline = Deadline::after(self.options.reply);
            self.drain(deadline).map_err(|cause| self.error("leaving the stub", cause))?;
        }
        for trap in self.traps().to_vec() {
            self.remove(trap.kind, trap.at, trap.len)?;
        }
        // The next debugger expects virtual memory.
        self.physical_mode(false)?;
        let sent = self.connection.flush(Deadline::after(self.options.farewell));
        sent.map_err(|cause| self.error("leaving the stub", cause))?;
        self.detached = true;
        Ok(())
    }

    /// Says that QEMU's monitor has stopped the guest, and that the stub's word of that is not awaited.
    pub fn stopped_elsewhere(&mut self) {
        if self.state == State::Running {
            self.state = State::Stopped;
            self.last_stop.reason = StopReason::Paused;
        }
    }

    /// Says that QEMU's monitor has let the guest go on or will, which the stub does not tell: from now on, stops are waited for.
    pub fn resumed_elsewhere(&mut self) {
        if self.state == State::Stopped {
            self.state = State::Running;
            self.last_stop.reason = StopReason::Paused;
        }
    }
}
