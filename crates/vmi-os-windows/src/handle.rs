//! Open handles of a process: which objects it uses, and what it may do with them.

use vmi_arch_x86::X86Driver;
use vmi_core::list::rows;
use vmi_core::{Result, VirtAddr};

use crate::{HandleEntries, HandleEntry, Object, Windows};

/// An open handle. What it leads to is read when asked for.
#[derive(Clone, Copy, Debug)]
pub struct Handle<'l, 'v, D: X86Driver> {
    entry: HandleEntry,
    object: Object<'l, 'v, D>,
}

impl<'l, 'v, D: X86Driver> Handle<'l, 'v, D> {
    /// The value of the handle.
    pub fn value(&self) -> u64 {
        self.entry.handle
    }

    /// The access that was granted (`ACCESS_MASK`): what its low 16 bits mean depends on the object's type.
    pub fn granted_access(&self) -> u32 {
        self.entry.granted_access
    }

    /// Flags of the handle; see [`HandleEntry::attributes`].
    pub fn attributes(&self) -> u32 {
        self.entry.attributes
    }

    /// The object that it leads to.
    pub fn object(&self) -> Object<'l, 'v, D> {
        self.object
    }
}

impl<'v, D: X86Driver> Windows<'v, D> {
    /// The open handles of the process whose `_EPROCESS` is at `process`, in ascending order; none if it has ended.
    ///
    /// The handles of the process System are those of the kernel itself. Errors as in [`HandleTable::entries`](crate::HandleTable::entries).
    pub fn handles_of(&self, process: VirtAddr) -> impl Iterator<Item = Result<Handle<'_, 'v, D>>> {
        let entries = self.handle_table_of(process).map(|table| table.map(|table| table.entries()).into_iter().flatten());
        rows(entries).map(|entry| {
            let entry = entry?;
            Ok(Handle { entry, object: self.object_of_header(entry.pointer)? })
        })
    }

    /// The open handles of a table of entries.
    pub(crate) fn bodies<'l>(
        &'l self,
        entries: HandleEntries<'l, 'v, D>,
    ) -> impl Iterator<Item = Result<(HandleEntry, Object<'l, 'v, D>)>> {
        entries.map(|entry| entry.map(|entry| (entry, self.object_at(entry.pointer))))
    }
}
