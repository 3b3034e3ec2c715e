//! What is found out once about a guest's objects, and small reads that their readers share.

use core::fmt;
use std::sync::OnceLock;

use vmi_arch_x86::X86Driver;
use vmi_core::{AddressSpace, ErrorKind, Memory, Result, TypeSource, VirtAddr};

use crate::Windows;
use crate::object_layout::Layout;
use crate::object_type::TypeTable;

/// Layouts, and what was found with them at the first need.
pub(crate) struct ObjectState<'v, D: X86Driver> {
    pub(crate) layout: Layout,
    pub(crate) types: OnceLock<TypeTable>,
    registry_space: OnceLock<Option<AddressSpace<'v, D>>>,
}

impl<D: X86Driver> ObjectState<'_, D> {
    pub(crate) fn new(types: &dyn TypeSource) -> Self {
        Self { layout: Layout::new(types), types: OnceLock::new(), registry_space: OnceLock::new() }
    }
}

impl<D: X86Driver> fmt::Debug for ObjectState<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectState").finish_non_exhaustive()
    }
}

impl<'v, D: X86Driver> Windows<'v, D> {
    /// Bytes of a pointer of the kernel.
    pub(crate) fn pointer_size(&self) -> u64 {
        self.width().bytes()
    }

    /// Reads a pointer of the kernel.
    pub(crate) fn pointer_at(&self, at: VirtAddr) -> Result<VirtAddr> {
        self.space.read_pointer(at)
    }

    /// Reads memory of the kernel. The caller bounds `len`.
    pub(crate) fn bytes_at(&self, at: VirtAddr, len: usize) -> Result<Vec<u8>> {
        self.space.read_vec(at, len)
    }

    /// The user memory of the process `Registry`, which holds the cells of hives since Windows 10 1803.
    pub(crate) fn registry_space(&self) -> Result<&AddressSpace<'v, D>> {
        let found = self.objects.registry_space.get_or_init(|| {
            // A list that breaks may hold the process before the break.
            let process = self.processes().flatten().find(|process| process.name().is_ok_and(|name| name == "Registry"))?;
            process.address_space().ok()
        });
        let missing = || ErrorKind::NoObject { what: "process `Registry`, in whose memory this part of a hive lies".to_owned() };
        found.as_ref().ok_or_else(|| missing().into())
    }
}
