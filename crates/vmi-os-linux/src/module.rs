//! Loaded kernel modules: `struct module` (include/linux/module.h).

use core::fmt;

use vmi_arch_x86::X86Driver;
use vmi_core::{
    Error, ErrorKind, Memory, Result, VirtAddr,
    list::{self, rows},
};

use crate::Linux;

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

/// A loaded kernel module. Its fields are read when asked for; if a running guest has unloaded it by then,
/// [`ErrorKind::Gone`] is the error.
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
        rows(self.symbol("modules").map(|head| list::nodes(&self.space, head, "the module list", MAX_MODULES, |_| Ok(0))))
            .map(|node| {
                let module = Module { linux: self, at: layout.list.owner(node?.at)? };
                let state: u32 = module.whole(self.read(module.at, layout.state))?;
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

    /// What was read of it, if it is still loaded.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] if it is not, whatever the outcome of the read was.
    pub(crate) fn whole<T>(&self, read: Result<T>) -> Result<T> {
        let node = self.linux.layout.module.list.of(self.at)?;
        if list::holds(&self.linux.space, node) {
            return read;
        }
        Err(ErrorKind::Gone { what: format!("the module at {}", self.at) }.into())
    }

    /// Name.
    ///
    /// # Errors
    /// As [`Memory::read_into`]; [`ErrorKind::NoType`] if the guest's types do not have the member. The same holds for all
    /// methods that follow.
    pub fn name(&self) -> Result<String> {
        let name = self.linux.layout.module.name;
        let limit = MAX_NAME.min(usize::try_from(name.size()?).unwrap_or(MAX_NAME));
        let name = self.whole(self.linux.space.read_c_string(name.of(self.at)?, limit))?;
        Ok(String::from_utf8_lossy(&name).into_owned())
    }

    /// The runs of memory that it takes, first address and size in bytes each: the one with its code first. Parts that it does not
    /// have (any more) are empty.
    ///
    /// # Errors
    /// As [`Module::name`].
    pub fn parts(&self) -> Result<Vec<(VirtAddr, u64)>> {
        self.whole(self.read_parts())
    }

    fn read_parts(&self) -> Result<Vec<(VirtAddr, u64)>> {
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
        let count: i32 = self.whole(self.linux.read(self.at, references))?;
        // Below zero while the module goes away.
        Ok(Some(count.saturating_sub(OWN_REFERENCE).try_into().unwrap_or(0)))
    }
}

impl<D: X86Driver> fmt::Debug for Module<'_, '_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module").field("address", &self.at).field("name", &self.name().ok()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_guest::TestGuest;

    /// Two modules before 6.4: state 0, list 8, name 0x18, core_layout at 0x58, init_layout at 0x68, refcnt 0x78.
    fn guest() -> TestGuest {
        let mut guest = TestGuest::new();
        for (path, offset, size) in [
            ("state", 0, 4),
            ("list", 8, 16),
            ("name", 0x18, 56),
            ("core_layout.base", 0x58, 8),
            ("core_layout.size", 0x60, 4),
            ("init_layout.base", 0x68, 8),
            ("init_layout.size", 0x70, 4),
            ("refcnt", 0x78, 4),
        ] {
            guest.types.member("module", path, offset, size);
        }
        guest.symbol("modules", 0x20000);
        guest.put(0x20000, &[0x21008]);
        guest.put(0x21000, &[0, 0x22008]);
        guest.text(0x21018, "loop");
        guest.put(0x21058, &[0xc000, 0x8000, 0, 0, 2]);
        guest.put(0x22000, &[0, 0x20000]);
        guest.text(0x22018, "llc");
        guest.put(0x22058, &[0x5000, 0x4000, 0x9000, 0x1000, 1]);
        guest
    }

    /// Name, base, size and references.
    type Row = (String, u64, u64, Option<u32>);

    fn rows(guest: TestGuest) -> Vec<Result<Row>> {
        let (vmi, kernel) = guest.build();
        let linux = Linux::with_kernel(&vmi, kernel).unwrap();
        let row = |module: Module<'_, '_, _>| {
            let (base, size) = module.place()?;
            Ok((module.name()?, base.get(), size, module.references()?))
        };
        linux.modules().map(|module| row(module?)).collect()
    }

    #[test]
    fn modules_before_6_4() {
        let rows: Vec<_> = rows(guest()).into_iter().map(Result::unwrap).collect();
        let expected = [("loop".to_owned(), 0xc000, 0x8000, Some(1)), ("llc".to_owned(), 0x5000, 0x5000, Some(0))];
        assert_eq!(rows, expected, "the size is that of both parts");
    }

    #[test]
    fn a_module_that_is_not_yet_formed_is_left_out() {
        let mut guest = guest();
        guest.put32(0x21000, &[UNFORMED]);
        assert_eq!(rows(guest).len(), 1);
    }

    #[test]
    fn modules_in_a_circle_end_in_an_error() {
        let mut guest = guest();
        guest.put(0x22008, &[0x22008]);
        let rows = rows(guest);
        assert!(matches!(rows.last(), Some(Err(error)) if matches!(error.kind(), ErrorKind::Corrupt { .. })));
        assert!(rows.len() <= 6, "{}", rows.len());
    }

    #[test]
    fn a_name_that_does_not_end_is_an_error() {
        let mut guest = guest();
        guest.text(0x21018, &"x".repeat(60));
        let error = rows(guest).swap_remove(0).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unterminated { limit: 56, .. }), "{error}");
    }
}
