//! When the guest booted.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vmi_arch_x86::X86Driver;
use vmi_core::{Error, Result, VirtAddr};

use crate::Linux;

impl<D: X86Driver> Linux<'_, D> {
    /// When it booted, by its own clock: what `btime` in /proc/stat tells, to the nanosecond.
    ///
    /// getboottime64() in kernel/time/timekeeping.c: the difference of the offsets of real time and of time since boot.
    ///
    /// # Errors
    /// [`ErrorKind::NoSymbol`](vmi_core::ErrorKind::NoSymbol) or [`ErrorKind::NoType`](vmi_core::ErrorKind::NoType) if the timekeeper cannot be found,
    /// [`ErrorKind::Corrupt`](vmi_core::ErrorKind::Corrupt) if the guest's clock is set before 1970.
    pub fn boot_time(&self) -> Result<SystemTime> {
        let layout = &self.layout.timekeeper;
        let at = self.timekeeper()?;
        let real: i64 = self.read(at, layout.real)?;
        let boot: i64 = self.read(at, layout.boot)?;
        real.checked_sub(boot)
            .and_then(|nanoseconds| u64::try_from(nanoseconds).ok())
            .and_then(|nanoseconds| UNIX_EPOCH.checked_add(Duration::from_nanos(nanoseconds)))
            .ok_or_else(|| Error::corrupt(format!("real time lies {real} ns after the start and {boot} ns of sleep"), at))
    }

    /// The timekeeper is inside `tk_core`, which has a named type only since 6.13 and is the first of
    /// `timekeeper_data` since 6.17. Before 6.13, its copy `shadow_timekeeper` stands alone.
    fn timekeeper(&self) -> Result<VirtAddr> {
        let inside = self.layout.tk_data.timekeeper;
        if !inside.exists() {
            return self.symbol("shadow_timekeeper");
        }
        inside.of(self.symbol("timekeeper_data").or_else(|_| self.symbol("tk_core"))?)
    }
}
