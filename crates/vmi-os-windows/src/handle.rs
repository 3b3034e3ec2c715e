//! Open handles of a process: which objects it uses, and what it may do with them.

use vmi_arch_x86::X86Driver;
use vmi_core::Result;
use vmi_core::list::rows;

use crate::{HandleEntry, Object, Process};

/// An open handle. What it leads to is read when asked for.
#[derive(Debug)]
pub struct Handle<'w, 'v, D: X86Driver> {
    entry: HandleEntry,
    object: Object<'w, 'v, D>,
}

impl<D: X86Driver> Clone for Handle<'_, '_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: X86Driver> Copy for Handle<'_, '_, D> {}

impl<'w, 'v, D: X86Driver> Handle<'w, 'v, D> {
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
    pub fn object(&self) -> Object<'w, 'v, D> {
        self.object
    }
}

impl<'w, 'v, D: X86Driver> Process<'w, 'v, D> {
    /// Its open handles, in ascending order; none if it has ended. Those of the process System are the kernel's own.
    ///
    /// Errors are among the other rows, as in [`HandleTable::entries`](crate::HandleTable::entries).
    pub fn handles(&self) -> impl Iterator<Item = Result<Handle<'w, 'v, D>>> + use<'w, 'v, D> {
        let windows = self.windows;
        let table = self.handle_table().and_then(|table| table.map(|table| windows.handle_table_at(table)).transpose());
        rows(table.map(|table| table.map(|table| table.entries()).into_iter().flatten())).map(move |entry| {
            let entry = entry?;
            Ok(Handle { entry, object: windows.object_of_header(entry.pointer)? })
        })
    }
}
