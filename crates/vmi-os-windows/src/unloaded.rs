//! Drivers that have been unloaded: the kernel keeps the last 50 (`MmUnloadedDrivers`), so that a crash in the place of one can be told.
//!
//! An entry is a `UNICODE_STRING` with the name, first and last address as pointers, and the time as `FILETIME`. The array is a ring: `MmLastUnloadedDriver` is
//! where the next one will be put.

use std::time::SystemTime;

use vmi_arch_x86::X86Driver;
use vmi_core::{Memory, Result, VirtAddr};

use crate::Windows;
use crate::file_time::moment;
use crate::windows::KernelMemory;

/// How many drivers the kernel remembers (MI_UNLOADED_DRIVERS).
const COUNT: u64 = 50;

/// A driver that has been unloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnloadedDriver {
    /// File name.
    pub name: String,
    /// First address that it had.
    pub start: VirtAddr,
    /// First address behind it.
    pub end: VirtAddr,
    /// When it was unloaded; a triage dump does not tell.
    pub time: Option<SystemTime>,
}

impl<D: X86Driver> Windows<'_, D> {
    /// The drivers that were unloaded last, the latest first.
    ///
    /// # Errors
    /// [`ErrorKind::NoSymbol`](vmi_core::ErrorKind::NoSymbol) if the variable `MmUnloadedDrivers` is not known, else as reading memory. The first entry that
    /// cannot be read ends the list.
    pub fn unloaded_drivers(&self) -> Result<Vec<UnloadedDriver>> {
        if let Some(drivers) = self.dumped_unloaded()? {
            return Ok(drivers);
        }
        let array = self.kernel_pointer(self.symbol("MmUnloadedDrivers")?)?;
        if array.is_null() {
            // Nothing has been unloaded yet.
            return Ok(Vec::new());
        }
        let next =
            u64::from(KernelMemory(self).read::<u32>(self.symbol("MmLastUnloadedDriver")?)?).checked_rem(COUNT).unwrap_or(0);
        let pointer = self.width().bytes();
        // The time is aligned to 8 bytes, which in both widths adds nothing.
        let size = pointer.wrapping_mul(4).wrapping_add(8);
        let mut drivers = Vec::new();
        for back in 1..=COUNT {
            let index = next.wrapping_add(COUNT).wrapping_sub(back).checked_rem(COUNT).unwrap_or(0);
            let at = array.wrapping_add(index.wrapping_mul(size));
            let start = self.kernel_pointer(at.wrapping_add(pointer.wrapping_mul(2)))?;
            if start.is_null() {
                continue;
            }
            drivers.push(UnloadedDriver {
                name: self.string(at)?,
                start,
                end: self.kernel_pointer(at.wrapping_add(pointer.wrapping_mul(3)))?,
                time: moment(KernelMemory(self).read(at.wrapping_add(pointer.wrapping_mul(4)))?),
            });
        }
        Ok(drivers)
    }
}
