//! Loaded kernel modules: `struct module` (include/linux/module.h).

use core::fmt;

use vmi_arch_x86::X86Driver;
use vmi_core::{Error, Memory, Result, VirtAddr};

use crate::Linux;
use crate::list::{List, rows};

/// More modules than any machine has loaded: 4 GiB of the address space hold all of them.
const MAX_MODULES: usize = 1 << 16;
/// MODULE_NAME_LEN is 64 less the size of a pointer.
const MAX_NAME: usize = 64;
/// MODULE_STATE_UNFORMED: still being set up, or already taken apart. /proc/modules leaves these out.
const UNFORMED: u32 = 3;
/// MODULE_REF_BASE: the reference that the kernel itself holds on a loaded module.
const OWN_REFERENCE: i32 = 1;
/// MOD_MEM_NUM_TYPES is 7.
const MAX_PARTS: u64 = 32;

/// A loaded kernel module. Its fields are read when asked for.
pub struct Module<'l, 'v, D: X86Driver> {
    pub(crate) linux: &'l Linux<'v, D>,
    pub(crate) at: VirtAddr,
}

impl<D: X86Driver> Clone for Module<'_, '_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: X86Driver> Copy for Module<'_, '_, D> {}

impl<'v, D: X86Driver> Linux<'v, D> {
    /// The loaded modules, the last one loaded first, as /proc/modules lists them.
    pub fn modules(&self) -> impl Iterator<Item = Result<Module<'_, 'v, D>>> {
        let layout = &self.layout.module;
        rows(self.symbol("modules").map(|head| List::new(&self.space, head, "the module list", MAX_MODULES)))
            .map(|node| {
                let module = Module { linux: self, at: layout.list.owner(node?)? };
                let state: u32 = self.read(module.at, layout.state)?;
                Ok((state != UNFORMED).then_some(module))
            })
            .filter_map(Result::transpose)
    }
}

impl<D: X86Driver> Module<'_, '_, D> {
    /// Where its `struct module` is.
    pub fn address(&self) -> VirtAddr {
        self.at
    }

    /// Name.
    ///
    /// # Errors
    /// As [`Memory::read_into`]; [`ErrorKind::NoType`](vmi_core::ErrorKind::NoType) if the guest's types do not have the member. The same holds for all
    /// methods that follow.
    pub fn name(&self) -> Result<String> {
        let name = self.linux.layout.module.name;
        let limit = MAX_NAME.min(usize::try_from(name.size()?).unwrap_or(MAX_NAME));
        Ok(String::from_utf8_lossy(&self.linux.space.read_c_string(name.of(self.at)?, limit)?).into_owned())
    }

    /// The runs of memory that it takes, first address and size in bytes each: the one with its code first. Parts that it does not
    /// have (any more) are empty.
    ///
    /// # Errors
    /// As [`Module::name`].
    pub fn parts(&self) -> Result<Vec<(VirtAddr, u64)>> {
        let (linux, layout) = (self.linux, &self.linux.layout.module);
        if !layout.parts.exists() {
            return [(layout.core_base, layout.core_size), (layout.init_base, layout.init_size)]
                .into_iter()
                .map(|(base, size)| Ok((linux.pointer(self.at, base)?, u64::from(linux.read::<u32>(self.at, size)?))))
                .collect();
        }
        let part = &linux.layout.part;
        let (array, stride) = (layout.parts.of(self.at)?, part.whole.size()?);
        let count = layout.parts.size()?.checked_div(stride).unwrap_or(0).min(MAX_PARTS);
        (0..count)
            .map(|index| {
                let at = array.wrapping_add(index.wrapping_mul(stride));
                Ok((linux.pointer(at, part.base)?, u64::from(linux.read::<u32>(at, part.size)?)))
            })
            .collect()
    }

    /// First address and size in bytes as /proc/modules prints them: the start of its code, and the sum of all parts.
    ///
    /// # Errors
    /// As [`Module::name`].
    pub fn place(&self) -> Result<(VirtAddr, u64)> {
        let parts = self.parts()?;
        let base = parts.first().ok_or_else(|| Error::corrupt("a module without memory", self.at))?.0;
        Ok((base, parts.iter().fold(0, |sum, part| sum.saturating_add(part.1))))
    }

    /// How many hold a reference to it; `None` if the kernel cannot unload modules and does not count.
    ///
    /// # Errors
    /// As [`Module::name`].
    pub fn references(&self) -> Result<Option<u32>> {
        let references = self.linux.layout.module.references;
        if !references.exists() {
            return Ok(None);
        }
        let count: i32 = self.linux.read(self.at, references)?;
        // Below zero while the module goes away.
        Ok(Some(count.saturating_sub(OWN_REFERENCE).try_into().unwrap_or(0)))
    }
}

impl<D: X86Driver> fmt::Debug for Module<'_, '_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module").field("address", &self.at).field("name", &self.name().ok()).finish()
    }
}
