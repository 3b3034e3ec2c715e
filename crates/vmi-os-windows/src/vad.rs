//! Virtual address descriptors (VADs): which memory a process has reserved, and for what. They are the nodes of a tree, ordered by address.
//!
//! The tree has had three forms: since Windows 8.1 `_RTL_AVL_TREE`, from Server 2003 to Windows 8 `_MM_AVL_TABLE`, whose root is the right child of a node that
//! is no descriptor, and in XP a pointer to the first descriptor. See "Windows Internals" (Russinovich and others), chapter "Memory management", and
//! "The VAD tree: A process-eye view of physical memory" (Dolan-Gavitt, 2007).

use core::fmt;

use vmi_arch_x86::X86Driver;
use vmi_core::{
    Error, ErrorKind, KernelField, MemoryArea, PAGE_SIZE, Result, VirtAddr,
    list::rows,
    live::{self, Still},
};

use crate::guest::{known, present};
use crate::unicode_string::Width;
use crate::{Process, Windows};

/// More descriptors than a process has: each takes at least 64 KiB of 128 TiB, and a block of the kernel's pool.
const MAX_VADS: usize = 1 << 22;
/// Steps from the root to a leaf. A balanced tree of 2^32 nodes has at most 46 (1.44 log2 n).
const MAX_DEPTH: usize = 64;
/// What the errors call the tree.
const TREE: &str = "the tree of memory areas";

/// What the memory of a descriptor is (`MI_VAD_TYPE`; "Windows Internals").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VadKind {
    /// Private memory, a mapped file or shared memory.
    Plain,
    /// Memory of a device, or `\Device\PhysicalMemory`.
    Physical,
    /// A program or library that was mapped as such.
    Image,
    /// Physical pages that the program maps itself (AWE).
    Awe,
    /// Memory whose writes are recorded.
    WriteWatch,
    /// Large pages.
    LargePages,
    /// Memory of a graphics device that moves.
    RotatePhysical,
    /// A section of large pages.
    LargePageSection,
    /// A number that none of these has.
    Other(u8),
}

impl From<u8> for VadKind {
    fn from(kind: u8) -> Self {
        match kind {
            0 => Self::Plain,
            1 => Self::Physical,
            2 => Self::Image,
            3 => Self::Awe,
            4 => Self::WriteWatch,
            5 => Self::LargePages,
            6 => Self::RotatePhysical,
            7 => Self::LargePageSection,
            other => Self::Other(other),
        }
    }
}

/// What a process may do with memory: the 5 bits that the memory manager keeps for it ("Windows Internals"; the names are those of `VirtualProtect`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageProtection(pub u8);

impl PageProtection {
    const fn rights(self) -> u8 {
        // Guard and no-cache together stand for write-combined memory, or alone for none that may be accessed.
        self.0 & 7
    }

    /// The process may read it.
    pub const fn is_readable(self) -> bool {
        self.rights() != 0
    }

    /// The process may write it, into its own copy where it is shared.
    pub const fn is_writable(self) -> bool {
        self.rights() >= 4
    }

    /// The process may run code in it.
    pub const fn is_executable(self) -> bool {
        matches!(self.rights(), 2 | 3 | 6 | 7)
    }

    /// Writes go into a copy of the process's own.
    pub const fn is_copy_on_write(self) -> bool {
        matches!(self.rights(), 5 | 7)
    }

    /// The first access raises an exception, as at the end of a stack.
    pub const fn is_guarded(self) -> bool {
        self.0 & 0x18 == 0x10 && self.rights() != 0
    }
}

impl fmt::Display for PageProtection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 8] = [
            "NOACCESS",
            "READONLY",
            "EXECUTE",
            "EXECUTE_READ",
            "READWRITE",
            "WRITECOPY",
            "EXECUTE_READWRITE",
            "EXECUTE_WRITECOPY",
        ];
        f.write_str(NAMES.get(usize::from(self.rights())).copied().unwrap_or_default())?;
        match (self.0 & 0x18, self.rights()) {
            (_, 0) | (0, _) => Ok(()),
            (0x08, _) => f.write_str(" NOCACHE"),
            (0x10, _) => f.write_str(" GUARD"),
            _ => f.write_str(" WRITECOMBINE"),
        }
    }
}

/// A virtual address descriptor. Its fields are read when asked for.
pub struct Vad<'w, 'v, D: X86Driver> {
    windows: &'w Windows<'v, D>,
    at: VirtAddr,
    start: VirtAddr,
    end: VirtAddr,
}

impl<D: X86Driver> Clone for Vad<'_, '_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: X86Driver> Copy for Vad<'_, '_, D> {}

impl<D: X86Driver> PartialEq for Vad<'_, '_, D> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.start, self.end) == (other.at, other.start, other.end)
    }
}

impl<'w, 'v, D: X86Driver> Process<'w, 'v, D> {
    /// The virtual address descriptors in ascending order; none for a process without user memory, or one that has ended.
    ///
    /// Descriptors that do not ascend end the walk in an error: the tree is damaged or was changed while it was read. Of a running guest they are read at once,
    /// as often as it takes for two readings to agree.
    pub fn vads(&self) -> impl Iterator<Item = Result<Vad<'w, 'v, D>>> + use<'w, 'v, D> {
        let process = *self;
        let read = move || rows(Walk::new(process));
        let vmi = self.windows.vmi();
        let agreed = live::runs(vmi).then(|| self.whole(live::agreed(vmi, TREE, || read().collect())));
        let still = agreed.is_none().then(|| Still::new(vmi, TREE, read()));
        still.into_iter().flatten().chain(agreed.into_iter().flat_map(|vads| rows(vads.map(Vec::into_iter))))
    }

    /// The descriptor of the memory that `at` lies in; `None` if the process has reserved none there.
    ///
    /// # Errors
    /// As reading memory; [`ErrorKind::Corrupt`] if the way from the root is longer than in any tree; [`ErrorKind::NoType`] if the types do not describe the tree.
    pub fn vad_at(&self, at: VirtAddr) -> Result<Option<Vad<'w, 'v, D>>> {
        let process = self.unproven();
        self.whole(live::settled(self.windows.vmi(), TREE, || {
            let tree = Tree::new(process)?;
            let mut here = tree.root()?;
            for _ in 0..MAX_DEPTH {
                let Some(node) = here else { return Ok(None) };
                let vad = tree.vad(node)?;
                here = match () {
                    () if at < vad.start => tree.child(node, tree.left)?,
                    () if at >= vad.end => tree.child(node, tree.right)?,
                    () => return Ok(Some(vad)),
                };
            }
            Err(Error::corrupt(format!("{TREE} is deeper than {MAX_DEPTH}"), process.address()))
        }))
    }

    /// Its memory areas in ascending order, as rows. The name is that of the mapped file.
    pub fn memory_areas(&self) -> impl Iterator<Item = Result<MemoryArea>> + use<'w, 'v, D> {
        self.vads().map(|vad| vad?.area())
    }
}

/// The tree of a process, whichever form it has.
struct Tree<'w, 'v, D: X86Driver> {
    windows: &'w Windows<'v, D>,
    process: VirtAddr,
    /// Where the children of a node are.
    left: u64,
    right: u64,
    width: u64,
}

impl<'w, 'v, D: X86Driver> Tree<'w, 'v, D> {
    fn new(process: Process<'w, 'v, D>) -> Result<Self> {
        let (windows, layout) = (process.windows, &process.windows.layout);
        let width = windows.width().bytes();
        // The descriptor is the node until Windows 7; later the node is a member of it, whose layout is public (RTL_BALANCED_NODE in ntddk.h): the left child
        // is its first member, the right one the second.
        let (left, right) = match () {
            () if layout.vad.left.exists() => (layout.vad.left.offset()?, layout.vad.right.offset()?),
            () if layout.old_tree.root.exists() => (layout.avl_node.left.offset()?, layout.avl_node.right.offset()?),
            () if layout.tree_node.left.exists() => (layout.tree_node.left.offset()?, layout.tree_node.right.offset()?),
            () => (0, width),
        };
        layout.vad.start.offset()?;
        Ok(Self { windows, process: process.address(), left, right, width })
    }

    fn root(&self) -> Result<Option<VirtAddr>> {
        let layout = &self.windows.layout;
        let root = layout.process.vad_root.of(self.process)?;
        if layout.old_tree.root.exists() {
            return self.child(root.wrapping_add(layout.old_tree.root.offset()?), self.right);
        }
        self.child(root, 0)
    }

    /// The node that the pointer at this offset of `node` leads to.
    fn child(&self, node: VirtAddr, offset: u64) -> Result<Option<VirtAddr>> {
        let child = self.windows.kernel_pointer(node.wrapping_add(offset))?;
        Ok(Some(child).filter(|child| !child.is_null()))
    }

    /// The descriptor of a node.
    fn vad(&self, node: VirtAddr) -> Result<Vad<'w, 'v, D>> {
        let (windows, layout) = (self.windows, &self.windows.layout.vad);
        let at = if layout.node.exists() { layout.node.owner(node)? } else { node };
        // Since Windows 8.1 page numbers have 32 bits, and in 64-bit kernels 8 more elsewhere. Before, they are as wide as a pointer.
        let bytes = match self.windows.width() {
            Width::Bits64 if layout.start_high.exists() => 4,
            _ => self.width,
        };
        let page = |low: KernelField, high: KernelField| {
            let low = match bytes {
                4 => u64::from(windows.read::<u32>(at, low)?),
                _ => windows.read::<u64>(at, low)?,
            };
            let high = if high.exists() { u64::from(windows.read::<u8>(at, high)?) } else { 0 };
            Ok::<_, Error>(low | high << 32)
        };
        let (first, last) = (page(layout.start, layout.start_high)?, page(layout.end, layout.end_high)?);
        let address = |page: u64| page.checked_mul(PAGE_SIZE).map(VirtAddr::new);
        let end = last.checked_add(1).and_then(address);
        match (address(first), end) {
            (Some(start), Some(end)) if start < end => Ok(Vad { windows, at, start, end }),
            _ => Err(Error::corrupt(format!("a memory area from page {first:#x} to page {last:#x}"), at)),
        }
    }
}

/// A walk over the tree from left to right.
struct Walk<'w, 'v, D: X86Driver> {
    tree: Tree<'w, 'v, D>,
    /// Nodes whose left side has been seen, and they themselves have not.
    stack: Vec<VirtAddr>,
    /// Where to go down from next.
    next: Option<VirtAddr>,
    /// Where the area before ended.
    end: VirtAddr,
    count: usize,
    ended: bool,
}

impl<'w, 'v, D: X86Driver> Walk<'w, 'v, D> {
    fn new(process: Process<'w, 'v, D>) -> Result<Self> {
        let tree = Tree::new(process)?;
        let next = tree.root()?;
        Ok(Self { tree, stack: Vec::new(), next, end: VirtAddr::ZERO, count: 0, ended: false })
    }

    fn step(&mut self) -> Result<Option<Vad<'w, 'v, D>>> {
        while let Some(node) = self.next {
            if self.stack.len() == MAX_DEPTH {
                return Err(Error::corrupt(format!("{TREE} is deeper than {MAX_DEPTH}"), node));
            }
            self.stack.push(node);
            self.next = self.tree.child(node, self.tree.left)?;
        }
        let Some(node) = self.stack.pop() else { return Ok(None) };
        let vad = self.tree.vad(node)?;
        // This guards against circles, too: no area can come up twice.
        if vad.start < self.end {
            let what = format!("a memory area from {} to {} behind one that ends at {}", vad.start, vad.end, self.end);
            return Err(Error::corrupt(what, vad.at));
        }
        if self.count == MAX_VADS {
            return Err(ErrorKind::Limit { what: TREE.to_owned(), limit: MAX_VADS }.into());
        }
        self.count = self.count.wrapping_add(1);
        self.end = vad.end;
        self.next = self.tree.child(node, self.tree.right)?;
        Ok(Some(vad))
    }
}

impl<'w, 'v, D: X86Driver> Iterator for Walk<'w, 'v, D> {
    type Item = Result<Vad<'w, 'v, D>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let step = self.step();
        self.ended = !matches!(step, Ok(Some(_)));
        step.transpose()
    }
}

impl<D: X86Driver> Vad<'_, '_, D> {
    /// Where the descriptor is (`_MMVAD_SHORT`).
    pub fn address(&self) -> VirtAddr {
        self.at
    }

    /// First address.
    pub fn start(&self) -> VirtAddr {
        self.start
    }

    /// First address behind it.
    pub fn end(&self) -> VirtAddr {
        self.end
    }

    /// A flag of `_MMVAD_FLAGS`.
    fn flag(&self, member: KernelField) -> Result<u64> {
        self.windows.number(self.windows.layout.vad.flags.of(self.at)?, member)
    }

    /// What the memory is.
    ///
    /// # Errors
    /// As reading memory; [`ErrorKind::NoType`] if the guest's types do not have the member. The same holds for all methods that follow.
    pub fn kind(&self) -> Result<VadKind> {
        let flags = &self.windows.layout.vad_flags;
        if flags.kind.exists() || !flags.image.exists() {
            return Ok(VadKind::from(self.flag(flags.kind)? as u8));
        }
        // Before Windows Vista.
        Ok(match () {
            () if self.flag(flags.image)? != 0 => VadKind::Image,
            () if self.flag(flags.physical)? != 0 => VadKind::Physical,
            () => VadKind::Plain,
        })
    }

    /// What the process might do with it when it was reserved. Pages may have been given other rights since.
    ///
    /// # Errors
    /// As [`Vad::kind`].
    pub fn protection(&self) -> Result<PageProtection> {
        Ok(PageProtection(self.flag(self.windows.layout.vad_flags.protection)? as u8))
    }

    /// Whether it is the process's own memory, not mapped from a file or shared memory.
    ///
    /// # Errors
    /// As [`Vad::kind`].
    pub fn is_private(&self) -> Result<bool> {
        Ok(self.flag(self.windows.layout.vad_flags.private)? != 0)
    }

    /// Whether all of it was committed at once when it was reserved.
    ///
    /// # Errors
    /// As [`Vad::kind`].
    pub fn is_committed(&self) -> Result<bool> {
        let layout = &self.windows.layout;
        if layout.vad_flags.committed.exists() {
            return Ok(self.flag(layout.vad_flags.committed)? != 0);
        }
        Ok(self.windows.number(layout.vad.more_flags.of(self.at)?, layout.vad_flags_1.committed)? != 0)
    }

    /// How many pages of it are charged to the process; `None` if the kernel does not count them.
    ///
    /// # Errors
    /// As [`Vad::kind`].
    pub fn commit_charge(&self) -> Result<Option<u64>> {
        let (windows, layout) = (self.windows, &self.windows.layout);
        // All bits set mean that nothing is charged.
        let counted = |charge: u64, all: u64| Some(charge).filter(|&charge| charge != all);
        if layout.vad_flags.commit.exists() {
            let all = layout.vad_flags.commit.number(u64::MAX)?;
            return Ok(counted(self.flag(layout.vad_flags.commit)?, all));
        }
        let low = windows.number(layout.vad.more_flags.of(self.at)?, layout.vad_flags_1.commit)?;
        let all = layout.vad_flags_1.commit.number(u64::MAX)?;
        let high = layout.vad.commit_high;
        let high = if high.exists() { u64::from(windows.read::<u8>(self.at, high)?) } else { 0 };
        Ok(counted(low, all).map(|low| low | high << 31))
    }

    /// The first part of the section that is mapped (`_SUBSECTION`), since Windows Vista; `None` for private memory.
    ///
    /// # Errors
    /// As [`Vad::kind`].
    pub(crate) fn subsection(&self) -> Result<Option<VirtAddr>> {
        if self.is_private()? {
            return Ok(None);
        }
        self.windows.pointer_or_null(self.at, self.windows.layout.mapped_vad.subsection)
    }

    /// Where the first entry is that all who map this part of the section have in common (a prototype PTE); `None` for private memory.
    ///
    /// # Errors
    /// As [`Vad::kind`].
    pub(crate) fn first_prototype(&self) -> Result<Option<VirtAddr>> {
        if self.is_private()? {
            return Ok(None);
        }
        self.windows.pointer_or_null(self.at, self.windows.layout.mapped_vad.first_pte)
    }

    /// What the memory manager knows of the mapped file or shared memory (`_CONTROL_AREA`); `None` for private memory.
    ///
    /// # Errors
    /// As [`Vad::kind`].
    pub fn control_area(&self) -> Result<Option<VirtAddr>> {
        let layout = &self.windows.layout;
        // A descriptor of private memory ends before these members.
        if self.is_private()? {
            return Ok(None);
        }
        if layout.mapped_vad.subsection.exists() || !layout.mapped_vad.control_area.exists() {
            let Some(subsection) = self.subsection()? else { return Ok(None) };
            return self.windows.pointer_or_null(subsection, layout.subsection.control_area);
        }
        self.windows.pointer_or_null(self.at, layout.mapped_vad.control_area)
    }

    /// The path of the mapped file within its volume: `\Windows\System32\ntdll.dll`; `None` for memory without a file.
    ///
    /// # Errors
    /// As [`Vad::kind`].
    pub fn file(&self) -> Result<Option<String>> {
        self.control_area()?.map(|area| self.windows.file_of_control_area(area)).transpose().map(Option::flatten)
    }

    /// The offset in the mapped file in bytes, of a file that was not mapped as a program.
    fn file_offset(&self) -> Result<u64> {
        let layout = &self.windows.layout;
        if !layout.vad_flags_2.offset.exists() || !layout.mapped_vad.flags.exists() {
            return Ok(0);
        }
        let units = self.windows.number(layout.mapped_vad.flags.of(self.at)?, layout.vad_flags_2.offset)?;
        Ok(units.wrapping_mul(0x1_0000))
    }

    /// The area as a row.
    ///
    /// # Errors
    /// As reading memory. What the types do not describe is left out.
    pub fn area(&self) -> Result<MemoryArea> {
        let mut row = MemoryArea::new(self.start, self.end);
        if let Some(protection) = known(self.protection())? {
            row.read = protection.is_readable();
            row.write = protection.is_writable();
            row.execute = protection.is_executable();
        }
        let private = known(self.is_private())?.unwrap_or(true);
        row.shared = !private && !known(self.protection())?.is_some_and(PageProtection::is_copy_on_write);
        if !private {
            row.name = present(self.file())?.flatten();
            if row.name.is_some() && known(self.kind())? != Some(VadKind::Image) {
                row.offset = known(self.file_offset())?.unwrap_or(0);
            }
        }
        Ok(row)
    }
}

impl<D: X86Driver> fmt::Debug for Vad<'_, '_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vad").field("address", &self.at).field("start", &self.start).field("end", &self.end).finish()
    }
}

impl<D: X86Driver> Windows<'_, D> {
    /// The path of the file that a control area belongs to; `None` if it belongs to memory without a file.
    pub(crate) fn file_of_control_area(&self, area: VirtAddr) -> Result<Option<String>> {
        // A fast reference since Windows Vista; a plain pointer, which has no bits to be cut off, before.
        let Some(file) = self.fast_reference(area, self.layout.control_area.file)? else { return Ok(None) };
        self.string(self.layout.file.name.of(file)?).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protections_by_their_names() {
        let text = |bits| PageProtection(bits).to_string();
        assert_eq!(text(4), "READWRITE");
        assert_eq!(text(7), "EXECUTE_WRITECOPY");
        assert_eq!(text(0x14), "READWRITE GUARD");
        assert_eq!(text(0x18), "NOACCESS");
        assert_eq!(text(0x1c), "READWRITE WRITECOMBINE");
        assert!(PageProtection(0x14).is_guarded() && !PageProtection(0x1c).is_guarded());
        assert!(PageProtection(2).is_executable() && !PageProtection(2).is_writable());
    }
}
