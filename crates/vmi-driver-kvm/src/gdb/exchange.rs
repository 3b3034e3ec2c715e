//! Requests and their answers: what is expected, what is waited for, and what becomes of the connection if it does not come.

use std::borrow::Cow;
use std::time::Duration;

use super::client::{GdbClient, State};
use super::detach::LastWords;
use super::error::{GdbCause, GdbError};
use super::packet::Item;
use super::reply::{StopReply, accept, expect_ok};
use crate::deadline::Deadline;

impl GdbClient {
    pub(super) fn error(&self, doing: impl Into<Cow<'static, str>>, cause: GdbCause) -> GdbError {
        GdbError::new(&self.address, doing, cause)
    }

    /// A request whose answer is `OK`.
    pub(super) fn command(&mut self, request: &[u8], doing: &'static str) -> Result<(), GdbError> {
        let answer = self.request(request, doing)?;
        expect_ok(answer).map_err(|cause| self.error(doing, cause))
    }

    /// A request whose answer is neither an error nor empty.
    pub(super) fn ask(&mut self, request: &[u8], doing: &'static str) -> Result<Vec<u8>, GdbError> {
        let answer = self.request(request, doing)?;
        accept(answer).map_err(|cause| self.error(doing, cause))
    }

    pub(super) fn request(&mut self, request: &[u8], doing: &'static str) -> Result<Vec<u8>, GdbError> {
        self.ready(doing)?;
        self.exchange(request, self.options.reply).map_err(|cause| self.error(doing, cause))
    }

    /// Whether requests make sense now; brings the stub to a known state if it was lost.
    pub(super) fn ready(&mut self, doing: &'static str) -> Result<(), GdbError> {
        match self.state {
            State::Running => return Err(self.error(doing, GdbCause::Running)),
            State::Exited => return Err(self.error(doing, GdbCause::Exited)),
            State::Stopped => {}
        }
        if self.out_of_step {
            self.settle(Deadline::after(self.options.reply)).map_err(|cause| self.error(doing, cause))?;
        }
        Ok(())
    }

    pub(super) fn exchange(&mut self, request: &[u8], limit: Duration) -> Result<Vec<u8>, GdbCause> {
        self.connection.packet(request);
        self.answer(Some(request), Deadline::after(limit))
    }

    /// Waits for an answer, and sends the request again if it arrived damaged. It is not sent again because of silence: a stub that only was
    /// slow would answer twice, and the second answer would be taken for that to the next request.
    pub(super) fn answer(&mut self, request: Option<&[u8]>, deadline: Deadline) -> Result<Vec<u8>, GdbCause> {
        const ATTEMPTS: u32 = 4;
        let mut attempts = 1_u32;
        let wants_stop = request == Some(b"?");
        let result = loop {
            match self.connection.next(deadline) {
                Ok(Some(Item::Ack | Item::Notification(_))) => {}
                Ok(Some(Item::Packet(packet))) if StopReply::is(&packet) && !wants_stop => {
                    // QEMU sends one when it is connected to, and when someone pauses the guest through its monitor.
                    tracing::debug!(packet = %String::from_utf8_lossy(&packet), "unsolicited stop reply");
                    if packet.starts_with(b"W") || packet.starts_with(b"X") {
                        self.state = State::Exited;
                        break Err(GdbCause::Exited);
                    }
                }
                Ok(Some(Item::Packet(packet))) => return Ok(packet),
                Ok(Some(item @ (Item::Nak | Item::Damaged))) => {
                    if attempts >= ATTEMPTS {
                        break Err(GdbCause::Damaged { attempts });
                    }
                    attempts = attempts.saturating_add(1);
                    match (item, request) {
                        (Item::Nak, Some(request)) => self.connection.packet(request),
                        (Item::Nak, None) => break Err(GdbCause::Damaged { attempts }),
                        _ => self.connection.raw(b"-"),
                    }
                }
                Ok(None) => break Err(GdbCause::Timeout { after: deadline.limit }),
                Err(cause) => break Err(self.lost(cause)),
            }
        };
        self.out_of_step = true;
        result
    }

    /// Remembers that the stub is gone, if it is.
    pub(super) fn lost(&mut self, cause: GdbCause) -> GdbCause {
        match cause {
            GdbCause::Closed | GdbCause::Io(_) => self.state = State::Exited,
            _ => self.out_of_step = true,
        }
        cause
    }

    /// Brings the stub into a known state, whatever it was doing: the guest stopped, no request under way.
    pub(super) fn settle(&mut self, deadline: Deadline) -> Result<(), GdbCause> {
        self.connection.forget();
        let words = LastWords::new(self.features.packet_size, &self.threads);
        self.connection.raw(words.calm());
        (self.selected, self.physical, self.current) = (None, None, None);
        loop {
            match self.connection.next(deadline) {
                // Answers keep the order of the requests: this is the last one.
                Ok(Some(Item::Packet(packet))) if packet.starts_with(LastWords::MARK) => break,
                Ok(Some(Item::Packet(packet))) if packet.starts_with(b"W") || packet.starts_with(b"X") => {
                    self.state = State::Exited;
                    return Err(GdbCause::Exited);
                }
                Ok(Some(_)) => {}
                Ok(None) => return Err(GdbCause::Timeout { after: deadline.limit }),
                Err(cause) => return Err(self.lost(cause)),
            }
        }
        self.out_of_step = false;
        self.state = State::Stopped;
        Ok(())
    }
}
