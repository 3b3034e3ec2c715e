//! What is found out once about a guest's objects, and small reads that their readers share.

use core::fmt;
use std::sync::OnceLock;

use vmi_arch_x86::X86Driver;
use vmi_core::{AddressSpace, Error, ErrorKind, Memory, Paging, PhysAddr, Result, TypeSource, VirtAddr, list};

use crate::Windows;
use crate::object_layout::Layout;
use crate::object_type::TypeTable;
use crate::registry::bytes::utf16;

/// More processes than a guest has.
pub(crate) const MAX_PROCESSES: usize = 1 << 20;
/// Bytes of `_EPROCESS.ImageFileName`: 15 since Windows Vista, and a zero behind them; 16 before.
const NAME: usize = 15;

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
        self.space.mode().pointer_size() as u64
    }

    /// Where the `_EPROCESS` of the processes in the active list are.
    pub(crate) fn active_list(&self) -> impl Iterator<Item = Result<VirtAddr>> {
        let layout = &self.objects.layout.process;
        let links = layout.links;
        let identity = move |node| self.read(links.owner(node)?, layout.pid);
        let nodes = self
            .symbol("PsActiveProcessHead")
            .and_then(|head| links.offset().map(|_| head))
            .map(|head| list::nodes(&self.space, head, "the list of processes", MAX_PROCESSES, identity));
        list::rows(nodes).map(move |node| links.owner(node?.at))
    }

    /// The name of the file of the process at `process`, of at most 15 characters.
    pub(crate) fn process_name(&self, process: VirtAddr) -> Result<String> {
        let bytes: [u8; NAME] = self.read(process, self.objects.layout.process.name)?;
        let name = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(name.iter().map(|&byte| char::from(byte)).collect())
    }

    /// The user memory of the process `Registry`, which holds the cells of hives since Windows 10 1803.
    pub(crate) fn registry_space(&self) -> Result<&AddressSpace<'v, D>> {
        let found = self.objects.registry_space.get_or_init(|| {
            // A list that breaks may hold the process before or after the break.
            let process =
                self.active_list().flatten().find(|&process| self.process_name(process).is_ok_and(|name| name == "Registry"))?;
            let root = self.pointer(process, self.objects.layout.process.page_table).ok()?;
            Some(self.vmi().address_space(PhysAddr::new(root.get()), self.space.mode()))
        });
        let missing = || ErrorKind::NoObject { what: "process `Registry`, in whose memory this part of a hive lies".to_owned() };
        found.as_ref().ok_or_else(|| missing().into())
    }
}
