//! What a triage dump has beside the memory at its virtual addresses: the process and the thread that ran, the drivers, those that were unloaded.
//!
//! The header says where they are ([`TriageDump`]). The list of drivers is `DUMP_DRIVER_ENTRY` (an offset in the file, where the name is, and a
//! `_KLDR_DATA_TABLE_ENTRY`), that of unloaded ones `DUMP_UNLOADED_DRIVERS`; both as a dump of Windows 10 19041 shows them.

use vmi_arch_x86::X86Driver;
use vmi_core::{Address, Error, ErrorKind, KernelField, Memory, Note, PhysAddr, Region, Result, TriageDump, VirtAddr, Vmi};

use crate::Windows;
use crate::layout::Layout;
use crate::unloaded::UnloadedDriver;

/// More drivers than a kernel has loaded.
const MAX_DRIVERS: u32 = 1 << 16;
/// The longest name of a driver, in UTF-16 units: what a `UNICODE_STRING` can hold.
const MAX_NAME: u32 = 0x7fff;
/// Units of the name of an unloaded driver.
const UNLOADED_NAME: usize = 12;

/// An object of the kernel that a dump holds outside of its virtual memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SavedObject {
    start: VirtAddr,
    region: Region,
}

/// A driver in the list that a triage dump has of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DumpedDriver {
    /// Path: `\SystemRoot\system32\ntoskrnl.exe`.
    pub path: String,
    /// First address.
    pub base: VirtAddr,
    /// Bytes of memory that it takes.
    pub size: u64,
}

impl DumpedDriver {
    /// File name, without the folder.
    pub fn name(&self) -> &str {
        self.path.rsplit('\\').next().unwrap_or_default()
    }
}

/// What the note of a triage dump says.
pub(crate) fn parts<D: X86Driver>(vmi: &Vmi<D>) -> Option<TriageDump> {
    vmi.machine().notes.iter().find_map(|note| match note {
        Note::WindowsDump(dump) => dump.triage,
        _ => None,
    })
}

/// The objects that a triage dump holds outside of its virtual memory, with the addresses at which the kernel had them: the processor's block leads to the thread,
/// and the thread to the process.
pub(crate) fn saved_objects<D: X86Driver>(vmi: &Vmi<D>, layout: &Layout) -> Vec<SavedObject> {
    let Some(parts) = parts(vmi) else { return Vec::new() };
    let pointer = |region: Option<Region>, member: KernelField| {
        let at = region?.start().checked_add(member.offset().ok()?)?;
        vmi.read::<u64>(at).ok().map(VirtAddr::new).filter(|at| !at.is_null())
    };
    let object = |start: Option<VirtAddr>, region: Option<Region>| Some(SavedObject { start: start?, region: region? });
    let thread = object(pointer(parts.processor, layout.control_block.thread), parts.thread);
    let process = object(pointer(parts.thread, layout.kernel_thread.process), parts.process);
    thread.into_iter().chain(process).collect()
}

impl SavedObject {
    /// Where the `len` bytes at `at` are, if they are of this object.
    pub(crate) fn place(&self, at: VirtAddr, len: usize) -> Option<PhysAddr> {
        let offset = at.offset_from(self.start)?;
        let end = offset.checked_add(len as u64)?;
        if end <= self.region.len() { self.region.start().checked_add(offset) } else { None }
    }
}

impl<D: X86Driver> Windows<'_, D> {
    /// The drivers in the list that a triage dump has of its own, the kernel first; none for any other machine. The list in memory,
    /// [`Windows::kernel_modules`], is not in such a dump.
    ///
    /// # Errors
    /// [`ErrorKind::Limit`] or [`ErrorKind::Corrupt`] for a list that cannot be; as reading memory.
    pub fn dumped_drivers(&self) -> Result<Vec<DumpedDriver>> {
        let Some((parts, list)) = parts(self.vmi()).and_then(|parts| Some((parts, parts.drivers?))) else {
            return Ok(Vec::new());
        };
        let count = parts.driver_count;
        if count > MAX_DRIVERS {
            return Err(
                ErrorKind::Limit { what: "the list of drivers of the dump".to_owned(), limit: MAX_DRIVERS as usize }.into()
            );
        }
        let Some(stride) = list.len().checked_div(count.into()).filter(|stride| *stride >= 0x50) else { return Ok(Vec::new()) };
        (0..u64::from(count))
            .map(|index| self.dumped_driver(&parts, list.start().wrapping_add(index.wrapping_mul(stride))))
            .collect()
    }

    fn dumped_driver(&self, parts: &TriageDump, at: PhysAddr) -> Result<DumpedDriver> {
        let (vmi, layout) = (self.vmi(), &self.layout);
        let (new, old) = (&layout.kernel_module, &layout.module);
        let (base, size) = if new.base.exists() { (new.base, new.size) } else { (old.base, old.size) };
        // The offset of the name has the room of a pointer.
        let entry = at.wrapping_add(8);
        let base: u64 = vmi.read(entry.wrapping_add(base.offset()?))?;
        let size: u32 = vmi.read(entry.wrapping_add(size.offset()?))?;
        let name = u64::from(vmi.read::<u32>(at)?);
        let len: u32 = vmi.read(self.in_file(parts, name, 4)?)?;
        if len > MAX_NAME {
            return Err(Error::corrupt(format!("a driver's name of {len} characters"), VirtAddr::new(base)));
        }
        let bytes = len as usize * 2;
        let bytes = vmi.read_vec(self.in_file(parts, name.saturating_add(4), bytes)?, bytes)?;
        let units: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
        Ok(DumpedDriver { path: String::from_utf16_lossy(&units), base: VirtAddr::new(base), size: size.into() })
    }

    /// Where the `len` bytes at this offset of the dump file are.
    fn in_file(&self, parts: &TriageDump, offset: u64, len: usize) -> Result<PhysAddr> {
        let end = offset.saturating_add(len as u64);
        if end > parts.file.len() {
            return Err(parts.file.start().out_of_range(usize::try_from(end).unwrap_or(usize::MAX)));
        }
        Ok(parts.file.start().wrapping_add(offset))
    }

    /// The unloaded drivers in a triage dump's own list: a number, and entries of a `UNICODE_STRING`, the name in 12 units, first and last address.
    pub(crate) fn dumped_unloaded(&self) -> Result<Option<Vec<UnloadedDriver>>> {
        let Some(list) = parts(self.vmi()).and_then(|parts| parts.unloaded_drivers) else { return Ok(None) };
        const ENTRY: u64 = 56;
        let vmi = self.vmi();
        let count = vmi.read::<u32>(list.start())?;
        if u64::from(count).saturating_mul(ENTRY).saturating_add(8) > list.len() {
            return Err(Error::corrupt(format!("{count} unloaded drivers in {} bytes", list.len()), VirtAddr::ZERO));
        }
        let read = |index: u32| {
            let at = list.start().wrapping_add(u64::from(index).wrapping_mul(ENTRY)).wrapping_add(8);
            let len = usize::from(vmi.read::<u16>(at)? / 2).min(UNLOADED_NAME);
            let units: [u16; UNLOADED_NAME] = vmi.read(at.wrapping_add(16))?;
            let [start, end]: [u64; 2] = vmi.read(at.wrapping_add(40))?;
            Ok(UnloadedDriver {
                name: String::from_utf16_lossy(units.get(..len).unwrap_or_default()),
                start: VirtAddr::new(start),
                end: VirtAddr::new(end),
                time: None,
            })
        };
        (0..count).map(read).collect::<Result<_>>().map(Some)
    }
}
