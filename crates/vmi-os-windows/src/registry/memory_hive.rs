//! Hives in the kernel's memory: `_CMHIVE` and the map of its cells.

use core::fmt;
use std::borrow::Cow;

use vmi_arch_x86::X86Driver;
use vmi_core::list::{self, rows};
use vmi_core::{AddressSpace, Error, KernelField, Memory, Result, VirtAddr};

use super::cells::{Cells, NO_CELL, RegistryError, content_len};
use crate::Windows;

/// More hives than a kernel has loaded: each user that is logged on has two, each container some more.
const MAX_HIVES: usize = 1 << 16;
/// `_HHIVE.Signature`.
const SIGNATURE: u32 = 0xbee0_bee0;
/// `_HBASE_BLOCK.RootCell`; see [`super`].
const ROOT_CELL: u64 = 0x24;
/// What one element of the map describes.
const BLOCK: u64 = 0x1000;

/// A hive that the kernel has loaded.
///
/// Where the map of its cells is, and how long, was read when it was made; cells are read when asked for. Since Windows 10 1803 most cells lie in the user
/// memory of the process `Registry`; they are read there.
pub struct MemoryHive<'l, 'v, D: X86Driver> {
    windows: &'l Windows<'v, D>,
    at: VirtAddr,
    /// The storage on disk, and the volatile one.
    storages: [Storage; 2],
}

/// One of a hive's two heaps of cells: `_DUAL`.
#[derive(Clone, Copy, Debug)]
struct Storage {
    len: u32,
    map: VirtAddr,
}

impl<'v, D: X86Driver> Windows<'v, D> {
    /// The hives that the kernel has loaded.
    ///
    /// They need the layouts of `_CMHIVE` and what it consists of, which only symbols of the kernel (a program database or symbol file) describe:
    /// they differ by every release. Without them the only row is an error that names what is missing.
    pub fn hives(&self) -> impl Iterator<Item = Result<MemoryHive<'_, 'v, D>>> {
        let (links, signature) = (self.objects.layout.cm_hive.links, self.objects.layout.hhive.signature);
        let identity = move |node| self.read(links.owner(node)?, signature);
        let nodes = self
            .symbol("CmpHiveListHead")
            .and_then(|head| links.offset().map(|_| head))
            .map(|head| list::nodes(&self.space, head, "the list of hives", MAX_HIVES, identity));
        rows(nodes).map(move |node| self.hive_at(links.owner(node?.at)?))
    }

    /// The hive whose `_CMHIVE` is at `at`.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](vmi_core::ErrorKind::Corrupt) if there is none; as [`Memory::read_into`].
    pub fn hive_at(&self, at: VirtAddr) -> Result<MemoryHive<'_, 'v, D>> {
        let layout = &self.objects.layout;
        let hive = layout.cm_hive.hive.of(at)?;
        if self.read::<u32>(hive, layout.hhive.signature)? != SIGNATURE {
            return Err(Error::corrupt("no registry hive: its signature is another one", hive));
        }
        let size = layout.dual.whole.size()?;
        let storage = |index: u64| -> Result<Storage> {
            let dual = layout.hhive.storage.of(hive)?.wrapping_add(size.wrapping_mul(index));
            let len = self.read(dual, layout.dual.len)?;
            // A storage of one table has no directory: the map leads to the pointer to that table.
            let map = match self.pointer_or_null(dual, layout.dual.map)? {
                Some(map) => map,
                None => layout.dual.small.of(dual)?,
            };
            Ok(Storage { len, map })
        };
        Ok(MemoryHive { windows: self, at, storages: [storage(0)?, storage(1)?] })
    }
}

impl<'l, 'v, D: X86Driver> MemoryHive<'l, 'v, D> {
    /// Where its `_CMHIVE` is.
    pub fn address(&self) -> VirtAddr {
        self.at
    }

    fn text(&self, member: KernelField) -> Result<Option<String>> {
        let text = self.windows.string(member.of(self.at)?)?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// The path of its file as the kernel opened it: `\??\C:\Windows\System32\config\SYSTEM`. Hives that were loaded by the boot loader, and those without a
    /// file, have none.
    ///
    /// # Errors
    /// As [`Windows::hives`] for what the guest's types do not describe; as [`Memory::read_into`]. The same holds for the methods that follow.
    pub fn file_path(&self) -> Result<Option<String>> {
        self.text(self.windows.objects.layout.cm_hive.file_path)
    }

    /// The path of its file as it was asked for: `\SystemRoot\System32\Config\SOFTWARE`.
    ///
    /// # Errors
    /// As [`MemoryHive::file_path`].
    pub fn user_path(&self) -> Result<Option<String>> {
        self.text(self.windows.objects.layout.cm_hive.user_path)
    }

    /// The key that it is mounted at: `\REGISTRY\MACHINE\SOFTWARE`. Kernels before Windows Vista do not note it.
    ///
    /// # Errors
    /// As [`MemoryHive::file_path`].
    pub fn root_path(&self) -> Result<Option<String>> {
        self.text(self.windows.objects.layout.cm_hive.root_path)
    }

    /// Whatever of its paths is known: that of its root key, else those of its file.
    ///
    /// # Errors
    /// As [`MemoryHive::file_path`], if none of them could be read.
    pub fn name(&self) -> Result<Option<String>> {
        let mut outcome = Ok(None);
        for path in [self.root_path(), self.user_path(), self.file_path()] {
            match path {
                Ok(Some(path)) => return Ok(Some(path)),
                Ok(None) => outcome = Ok(None),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    /// Where the byte `index` of a storage is.
    fn place(&self, index: u32) -> Result<VirtAddr> {
        let layout = &self.windows.objects.layout;
        let storage = if index >> 31 == 0 { self.storages[0] } else { self.storages[1] };
        let pointer = self.windows.pointer_size();
        let (directory, table, offset) =
            (u64::from(index >> 21 & 0x3ff), u64::from(index >> 12 & 0x1ff), u64::from(index & 0xfff));
        let table_at = self.windows.pointer_at(storage.map.wrapping_add(directory.wrapping_mul(pointer)))?;
        let entry = &layout.map_entry;
        let at = table_at.wrapping_add(table.wrapping_mul(entry.whole.size()?));
        if entry.block.exists() {
            return Ok(self.windows.pointer(at, entry.block)?.wrapping_add(offset));
        }
        // The low bits of the address of a bin are flags.
        let mut bin = self.windows.pointer(at, entry.bin)?.get() & !0xf;
        if bin == 0 && entry.temporary_bin.exists() {
            bin = self.windows.pointer(at, entry.temporary_bin)?.get() & !0xf;
        }
        let block = self.windows.pointer(at, entry.block_offset)?.get();
        if bin == 0 {
            return Err(Error::corrupt(format!("the block {index:#x} of the hive is not mapped"), at));
        }
        Ok(VirtAddr::new(bin).wrapping_add(block).wrapping_add(offset))
    }

    /// The memory that a cell's address belongs to: the kernel's, or that of the process `Registry`.
    fn space_of(&self, at: VirtAddr) -> Result<&AddressSpace<'v, D>> {
        if self.windows.is_kernel_address(at) { Ok(&self.windows.space) } else { self.windows.registry_space() }
    }

    /// Reads from `index` on. Blocks that follow each other in the hive need not do so in memory.
    fn read_cell(&self, index: u32, buf: &mut [u8]) -> Result<()> {
        let mut done = 0usize;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let here = index.wrapping_add(u32::try_from(done).unwrap_or(u32::MAX));
            let to_end = usize::try_from(BLOCK.wrapping_sub(u64::from(here) % BLOCK)).unwrap_or(usize::MAX);
            let piece = to_end.min(rest.len());
            let at = self.place(here)?;
            let (part, _) = rest.split_at_mut(piece);
            self.space_of(at)?.read_into(at, part)?;
            done = done.saturating_add(piece);
        }
        Ok(())
    }
}

impl<D: X86Driver> Cells for MemoryHive<'_, '_, D> {
    fn root(&self) -> Result<u32, RegistryError> {
        let layout = &self.windows.objects.layout;
        let base = self.windows.pointer(layout.cm_hive.hive.of(self.at)?, layout.hhive.base_block)?;
        let space = self.space_of(base)?;
        match space.read(base.wrapping_add(ROOT_CELL))? {
            NO_CELL => Err(RegistryError::NotAHive { why: "the base block names no root key".to_owned() }),
            root => Ok(root),
        }
    }

    fn has_volatile(&self) -> bool {
        true
    }

    fn cell(&self, index: u32) -> Result<Cow<'_, [u8]>, RegistryError> {
        let memory = |source| RegistryError::Memory { cell: index, source };
        let storage = if index >> 31 == 0 { self.storages[0] } else { self.storages[1] };
        let offset = index & 0x7fff_ffff;
        if index % 8 != 0 {
            return Err(RegistryError::corrupt(index, "is not at a multiple of 8"));
        }
        let rest = storage.len.checked_sub(offset).filter(|&rest| rest >= 4);
        let rest =
            rest.ok_or_else(|| RegistryError::corrupt(index, format!("lies behind the {} bytes of the storage", storage.len)))?;
        let mut size = [0; 4];
        self.read_cell(index, &mut size).map_err(memory)?;
        let len = content_len(index, i32::from_le_bytes(size), u64::from(rest))?;
        // Block by block, so that a size that lies costs no more memory than there is.
        let mut content = Vec::new();
        while content.len() < len {
            let done = content.len();
            let here = index.wrapping_add(4).wrapping_add(u32::try_from(done).unwrap_or(u32::MAX));
            let to_end = usize::try_from(BLOCK.wrapping_sub(u64::from(here) % BLOCK)).unwrap_or(usize::MAX);
            content.resize(done.saturating_add(to_end).min(len), 0);
            let Some(part) = content.get_mut(done..) else { break };
            self.read_cell(here, part).map_err(memory)?;
        }
        Ok(Cow::Owned(content))
    }
}

impl<D: X86Driver> fmt::Debug for MemoryHive<'_, '_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryHive").field("at", &self.at).field("storages", &self.storages).finish_non_exhaustive()
    }
}

impl<D: X86Driver> Clone for MemoryHive<'_, '_, D> {
    fn clone(&self) -> Self {
        Self { windows: self.windows, at: self.at, storages: self.storages }
    }
}
