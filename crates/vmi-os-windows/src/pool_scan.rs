//! Processes and threads that are found by nothing but the tag of their block of pool memory.
//!
//! The kernel's pools put a header in front of each block (`_POOL_HEADER`): sizes, a type, and a tag of four characters. A process lies in a block with the tag
//! `Proc`, a thread in one with `Thre`; until Windows 7 the highest bit of the tag is set, which marks a block as protected. Neither lists nor tables
//! of the kernel are asked, so that a process is found that was taken out of all of them, and one that has ended as long as its memory was not used again.
//!
//! A block that takes a page or more has no header and is not found by this. Processes and threads are smaller than that in all releases.

use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};

use memchr::memmem;
use rayon::prelude::*;
use vmi_arch_x86::X86Driver;
use vmi_core::{ErrorKind, KernelField, Memory, PAGE_SIZE, PhysAddr, Region, Result, VirtAddr};

use crate::Windows;
use crate::registry::bytes::{u16_at, u32_at, u64_at};

/// More processes or threads than a machine has.
const MAX_HITS: usize = 1 << 18;
/// What is read at once.
const CHUNK: u64 = 4 << 20;
/// Optional headers between the pool's header and the object's, in bytes: five of at most 32.
const OPTIONAL: usize = 0xa0;
/// The type of an object that can be waited for (`DISPATCHER_HEADER.Type`, the enumeration `_KOBJECTS`): a process.
pub(crate) const PROCESS: u8 = 3;
/// The same: a thread.
const THREAD: u8 = 6;
/// The bit of the last character of a tag that marks a block as protected (`PROTECTED_POOL`).
const PROTECTED: u8 = 0x80;
/// Ids are below this, and multiples of 4.
const MAX_ID: u64 = 1 << 26;

/// A process that was found by its pool tag.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolProcess {
    /// Where its `_EPROCESS` is in physical memory.
    pub physical: PhysAddr,
    /// Where it is in the kernel's memory, if its own lists tell, and that address leads back to it.
    pub object: Option<VirtAddr>,
    /// Process id.
    pub pid: u32,
    /// Id of the parent process.
    pub parent_pid: u32,
    /// Name of at most 15 characters.
    pub name: String,
    /// Root of its page tables. Of a process that has ended they may be something else by now.
    pub page_table: PhysAddr,
    /// When it was created and when it ended, as FILETIME: units of 100 ns since the year 1601; 0 if it runs.
    pub created: u64,
    /// See [`PoolProcess::created`].
    pub exited: u64,
}

/// A thread that was found by its pool tag.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolThread {
    /// Where its `_ETHREAD` is in physical memory.
    pub physical: PhysAddr,
    /// Where it is in the kernel's memory, if its own lists tell, and that address leads back to it.
    pub object: Option<VirtAddr>,
    /// Thread id.
    pub tid: u32,
    /// Id of its process.
    pub pid: u32,
    /// Where the `_EPROCESS` of its process is.
    pub process: Option<VirtAddr>,
}

/// A scan of physical memory: which tag, and which type of object that can be waited for is behind it.
#[derive(Clone, Copy)]
struct Kind {
    tag: [u8; 4],
    dispatcher: u8,
    /// Bytes of the object that are looked at.
    size: usize,
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.tag.escape_ascii())
    }
}

/// The bytes of an object that a scan has found, and where they are.
struct Found<'b> {
    at: PhysAddr,
    bytes: &'b [u8],
}

impl<D: X86Driver> Windows<'_, D> {
    /// Processes by their pool tags, in the order of physical memory; each was checked by its structure: type, page tables, ids, name, lists.
    ///
    /// All of physical memory is read, on all processors. Memory that cannot be read is left out.
    ///
    /// # Errors
    /// [`ErrorKind::NoType`] if the guest's types do not have a member that is checked; [`ErrorKind::Limit`] if there are more hits than a machine can have.
    pub fn scan_processes(&self) -> Result<Vec<PoolProcess>> {
        let layout = &self.layout.process;
        let members =
            [layout.pid, layout.parent, layout.name, layout.links, layout.exited, self.layout.kernel_process.page_table];
        self.scan(Kind { tag: *b"Proc", dispatcher: PROCESS, size: extent(&members)? }, |found| self.pool_process(found))
    }

    /// Threads by their pool tags, as [`Windows::scan_processes`].
    ///
    /// # Errors
    /// As [`Windows::scan_processes`].
    pub fn scan_threads(&self) -> Result<Vec<PoolThread>> {
        let layout = &self.layout.thread;
        let size = extent(&[layout.pid, layout.tid])?;
        self.scan(Kind { tag: *b"Thre", dispatcher: THREAD, size }, |found| self.pool_thread(found))
    }

    /// What `row` makes of the objects of a kind, which are found by the headers of their blocks.
    fn scan<T: Send>(&self, kind: Kind, row: impl Fn(&Found<'_>) -> Option<T> + Sync) -> Result<Vec<T>> {
        let header = usize::try_from(self.objects.layout.header.body.offset()?).unwrap_or(usize::MAX).min(0x100);
        let chunks: Vec<Region> = self.vmi().machine().memory.regions().iter().flat_map(|region| chunks(*region)).collect();
        let hits = AtomicUsize::new(0);
        let rows: Vec<Vec<T>> = chunks.par_iter().map(|chunk| self.scan_chunk(*chunk, kind, header, &hits, &row)).collect();
        if hits.into_inner() > MAX_HITS {
            return Err(ErrorKind::Limit { what: format!("the blocks tagged `{kind:?}`"), limit: MAX_HITS }.into());
        }
        Ok(rows.into_iter().flatten().collect())
    }

    fn scan_chunk<T>(
        &self,
        chunk: Region,
        kind: Kind,
        header: usize,
        hits: &AtomicUsize,
        row: &impl Fn(&Found<'_>) -> Option<T>,
    ) -> Vec<T> {
        let mut bytes = vec![0; usize::try_from(chunk.len()).unwrap_or(0)];
        if hits.load(Ordering::Relaxed) > MAX_HITS || self.vmi().read_lossy(chunk.start(), &mut bytes).is_err() {
            return Vec::new();
        }
        let [first, second, third, fourth] = kind.tag;
        let mut rows = Vec::new();
        for tag in [kind.tag, [first, second, third, fourth | PROTECTED]] {
            for at in memmem::find_iter(&bytes, &tag) {
                let Some((body, object)) = self.object_in_block(&bytes, at, kind, header) else { continue };
                let at = chunk.start().wrapping_add(body as u64);
                if let Some(row) = row(&Found { at, bytes: object }) {
                    rows.push((at, row));
                    if hits.fetch_add(1, Ordering::Relaxed) >= MAX_HITS {
                        return Vec::new();
                    }
                }
            }
        }
        rows.sort_by_key(|(at, _)| *at);
        rows.into_iter().map(|(_, row)| row).collect()
    }

    /// The object in the block whose tag is at `tag`: where it is in `bytes`, and its own bytes.
    fn object_in_block<'b>(&self, bytes: &'b [u8], tag: usize, kind: Kind, header: usize) -> Option<(usize, &'b [u8])> {
        let wide = self.pointer_size() == 8;
        let unit = if wide { 16 } else { 8 };
        let start = tag.checked_sub(4).filter(|start| start % unit == 0)?;
        // A block does not leave its page; its size is in units, of 8 bits on 64-bit kernels and of 9 on others.
        let mask = if wide { 0xff } else { 0x1ff };
        let units = usize::from(u16_at(bytes, start.checked_add(2)?)? & mask);
        let end = start.checked_add(units.checked_mul(unit)?)?;
        let page_end = start.checked_next_multiple_of(usize::try_from(PAGE_SIZE).ok()?).filter(|&next| next != start);
        let page_end = page_end.unwrap_or(start.checked_add(usize::try_from(PAGE_SIZE).ok()?)?);
        if end > page_end {
            return None;
        }
        let first = start.checked_add(unit)?.checked_add(header)?;
        // How many optional headers there are is not known: the object's own first bytes tell where it starts.
        (0..OPTIONAL).step_by(8).find_map(|optional| {
            let body = first.checked_add(optional)?;
            let object = bytes.get(body..body.checked_add(kind.size)?.min(end))?;
            let whole = object.len() == kind.size && object.first().is_some_and(|first| first & 0x7f == kind.dispatcher);
            whole.then_some((body, object)).filter(|(_, object)| self.is_waitable(object))
        })
    }

    /// Whether an object starts with a `DISPATCHER_HEADER` (wdm.h) in use: at byte 8 a list of waiting threads, whose pointers are the kernel's.
    fn is_waitable(&self, object: &[u8]) -> bool {
        [8, 8u64.saturating_add(self.pointer_size())]
            .iter()
            .all(|&at| self.pointer_in(object, at).is_some_and(|at| self.is_kernel_address(at)))
    }

    /// The pointer at `at` of the bytes of an object.
    fn pointer_in(&self, object: &[u8], at: u64) -> Option<VirtAddr> {
        let at = usize::try_from(at).ok()?;
        let pointer = if self.pointer_size() == 4 { u64::from(u32_at(object, at)?) } else { u64_at(object, at)? };
        Some(VirtAddr::new(pointer))
    }

    /// Where an object is in the kernel's memory: where a pointer in it or in a neighbour of its leads back to it, at the right physical address.
    fn virtual_of(&self, found: &Found<'_>, links: Option<u64>) -> Option<VirtAddr> {
        let leads_back = |object: &VirtAddr| {
            let translation = self.space.translate(*object).ok();
            translation.is_some_and(|translation| translation.at == found.at) && self.is_kernel_address(*object)
        };
        // Nobody waits for most objects: the list of waiting threads leads to itself.
        let alone = self.pointer_in(found.bytes, 8).map(|list| list.wrapping_sub(8));
        let by_neighbour = || {
            let links = links?;
            let next = self.pointer_in(found.bytes, links)?;
            let back = self.pointer_at(next.wrapping_add(self.pointer_size())).ok()?;
            Some(back.wrapping_sub(links))
        };
        alone.filter(leads_back).or_else(|| by_neighbour().filter(leads_back))
    }

    fn number_in(&self, object: &[u8], member: KernelField) -> Option<u64> {
        u64_at(object, usize::try_from(member.offset().ok()?).ok()?)
    }

    fn id_in(&self, object: &[u8], member: KernelField) -> Option<u32> {
        let id = self.pointer_in(object, member.offset().ok()?)?.get();
        u32::try_from(id).ok().filter(|_| id < MAX_ID && id % 4 == 0)
    }

    fn pool_process(&self, found: &Found<'_>) -> Option<PoolProcess> {
        let (layout, object) = (&self.layout.process, found.bytes);
        let pid = self.id_in(object, layout.pid)?;
        // The parent of a process that has ended may be anything that was an id.
        let parent_pid = self.id_in(object, layout.parent)?;
        let table = self.pointer_in(object, self.layout.kernel_process.page_table.offset().ok()?)?.get();
        // Page tables are pages; with PAE a root is a part of one; the low bits may hold a process context.
        let table = if self.pointer_size() == 8 { table & 0x000f_ffff_ffff_f000 } else { table & !0x1f };
        let name_at = usize::try_from(layout.name.offset().ok()?).ok()?;
        let name: Vec<u8> = object.get(name_at..)?.iter().take(15).take_while(|&&byte| byte != 0).copied().collect();
        let printable = !name.is_empty() && name.iter().all(|byte| (0x20..0x7f).contains(byte) || *byte >= 0xa0);
        let exited = self.number_in(object, layout.exited)?;
        let links = layout.links.offset().ok();
        let linked = links
            .and_then(|links| self.pointer_in(object, links))
            .is_some_and(|next| self.is_kernel_address(next) || next.is_null());
        if pid == 0 || !printable || table == 0 || !linked {
            return None;
        }
        Some(PoolProcess {
            physical: found.at,
            object: self.virtual_of(found, links),
            pid,
            parent_pid,
            name: name.iter().map(|&byte| char::from(byte)).collect(),
            page_table: PhysAddr::new(table),
            created: self.number_in(object, layout.created).unwrap_or(0),
            exited,
        })
    }

    fn pool_thread(&self, found: &Found<'_>) -> Option<PoolThread> {
        let (layout, object) = (&self.layout.thread, found.bytes);
        let (tid, pid) = (self.id_in(object, layout.tid)?, self.id_in(object, layout.pid)?);
        let owner = [self.layout.kernel_thread.process, layout.process].into_iter().find_map(|member| member.offset().ok());
        let process = owner.and_then(|owner| self.pointer_in(object, owner)).filter(|process| self.is_kernel_address(*process));
        if tid == 0 || pid == 0 {
            return None;
        }
        Some(PoolThread { physical: found.at, object: self.virtual_of(found, layout.links.offset().ok()), tid, pid, process })
    }
}

/// Bytes of an object up to the last of these members.
fn extent(members: &[KernelField]) -> Result<usize> {
    let mut end = 0;
    for member in members {
        end = member.offset()?.saturating_add(0x10).max(end);
    }
    // Larger ones have no header of a block.
    if end > PAGE_SIZE {
        Err(ErrorKind::Limit { what: "an object in the pool".to_owned(), limit: 4096 }.into())
    } else {
        Ok(end as usize)
    }
}

/// A region in pieces. Blocks of pools do not cross pages, so that pieces of whole pages cut none apart.
fn chunks(region: Region) -> impl Iterator<Item = Region> {
    let count = region.len().div_ceil(CHUNK);
    (0..count).filter_map(move |index| {
        let offset = index.checked_mul(CHUNK)?;
        Region::new(region.start().wrapping_add(offset), region.len().checked_sub(offset)?.min(CHUNK))
    })
}
