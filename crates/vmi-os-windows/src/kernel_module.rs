//! Loaded modules of the kernel: the list `PsLoadedModuleList` of `_KLDR_DATA_TABLE_ENTRY`, in older kernels `_LDR_DATA_TABLE_ENTRY`.

use core::fmt;

use vmi_arch_x86::X86Driver;
use vmi_core::{
    ErrorKind, KernelField, Result, VirtAddr,
    list::{self, rows},
};

use crate::Windows;

/// More modules than any machine has loaded: 4 GiB of the address space hold all of them.
const MAX_MODULES: usize = 1 << 16;

/// Where the members are, in whichever structure the types describe. Those that both have lie at the same places.
#[derive(Clone, Copy)]
struct Members {
    links: KernelField,
    base: KernelField,
    entry_point: KernelField,
    size: KernelField,
    full_name: KernelField,
    name: KernelField,
    load_count: KernelField,
    time_stamp: KernelField,
}

/// A loaded module of the kernel: the kernel itself, its hardware layer, a driver. Its fields are read when asked for; if a running guest has
/// unloaded it by then, [`ErrorKind::Gone`] is the error.
pub struct KernelModule<'w, 'v, D: X86Driver> {
    windows: &'w Windows<'v, D>,
    at: VirtAddr,
}

impl<D: X86Driver> Clone for KernelModule<'_, '_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: X86Driver> Copy for KernelModule<'_, '_, D> {}

impl<'v, D: X86Driver> Windows<'v, D> {
    /// The loaded modules of the kernel, in the order in which they were loaded: the kernel itself first.
    pub fn kernel_modules(&self) -> impl Iterator<Item = Result<KernelModule<'_, 'v, D>>> {
        let Members { links, base, .. } = self.module_members();
        let identity = move |node| Ok((self.pointer(links.owner(node)?, base)?.get() >> 12) as u32);
        let start = || {
            links.offset()?;
            let head = self.symbol("PsLoadedModuleList")?;
            Ok(list::nodes(&self.space, head, "the list of kernel modules", MAX_MODULES, identity))
        };
        rows(start()).map(move |node| Ok(KernelModule { windows: self, at: links.owner(node?.at)? }))
    }

    /// The kernel's module whose entry of the list is at `at`. Nothing is checked.
    pub fn kernel_module_at(&self, at: VirtAddr) -> KernelModule<'_, 'v, D> {
        KernelModule { windows: self, at }
    }

    fn module_members(&self) -> Members {
        let (new, old) = (&self.layout.kernel_module, &self.layout.module);
        if new.base.exists() {
            return Members {
                links: new.links,
                base: new.base,
                entry_point: new.entry_point,
                size: new.size,
                full_name: new.full_name,
                name: new.name,
                load_count: new.load_count,
                time_stamp: new.time_stamp,
            };
        }
        Members {
            links: old.load_links,
            base: old.base,
            entry_point: old.entry_point,
            size: old.size,
            full_name: old.full_name,
            name: old.name,
            load_count: old.load_count,
            time_stamp: old.time_stamp,
        }
    }
}

impl<D: X86Driver> KernelModule<'_, '_, D> {
    /// Where its entry of the list is.
    pub fn address(&self) -> VirtAddr {
        self.at
    }

    /// What was read of it, if it is still loaded.
    pub(crate) fn whole<T>(&self, read: Result<T>) -> Result<T> {
        let node = self.windows.module_members().links.of(self.at)?;
        if list::holds(&self.windows.space, node) {
            return read;
        }
        Err(ErrorKind::Gone { what: format!("the module at {}", self.at) }.into())
    }

    fn number(&self, member: KernelField) -> Result<u64> {
        self.whole(self.windows.number(self.at, member))
    }

    /// File name: `ntoskrnl.exe`.
    ///
    /// # Errors
    /// As reading memory; [`ErrorKind::NoType`] if the guest's types do not have the member. The same holds for all methods that follow.
    pub fn name(&self) -> Result<String> {
        let at = self.windows.module_members().name.of(self.at)?;
        self.whole(self.windows.string(at))
    }

    /// Path: `\SystemRoot\system32\ntoskrnl.exe`.
    ///
    /// # Errors
    /// As [`KernelModule::name`].
    pub fn path(&self) -> Result<String> {
        let at = self.windows.module_members().full_name.of(self.at)?;
        self.whole(self.windows.string(at))
    }

    /// First address.
    ///
    /// # Errors
    /// As [`KernelModule::name`].
    pub fn base(&self) -> Result<VirtAddr> {
        self.whole(self.windows.pointer(self.at, self.windows.module_members().base))
    }

    /// Bytes of memory that it takes.
    ///
    /// # Errors
    /// As [`KernelModule::name`].
    pub fn size(&self) -> Result<u64> {
        Ok(u64::from(self.number(self.windows.module_members().size)? as u32))
    }

    /// Where it starts; `None` if it has no such place.
    ///
    /// # Errors
    /// As [`KernelModule::name`].
    pub fn entry_point(&self) -> Result<Option<VirtAddr>> {
        self.whole(self.windows.pointer_or_null(self.at, self.windows.module_members().entry_point))
    }

    /// How often it is loaded: by itself and by those that use it.
    ///
    /// # Errors
    /// As [`KernelModule::name`].
    pub fn load_count(&self) -> Result<u16> {
        Ok(self.number(self.windows.module_members().load_count)? as u16)
    }

    /// The time stamp of its file's header, which in newer systems is no time but a hash.
    ///
    /// # Errors
    /// As [`KernelModule::name`].
    pub fn time_stamp(&self) -> Result<u32> {
        Ok(self.number(self.windows.module_members().time_stamp)? as u32)
    }
}

impl<D: X86Driver> fmt::Debug for KernelModule<'_, '_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelModule").field("address", &self.at).field("name", &self.name().ok()).finish()
    }
}
