//! Finding the list of all processes by content.
//!
//! `init_task`, the idle task of the first processor, is named `swapper/0` (`swapper` without SMP; kernel: init/init_task.c and
//! `init_idle` in kernel/sched/core.c). At some distance before its name lies `tasks`, the head of the list of all processes: from
//! there the list leads over init to `kthreadd` (processes 1 and 2, made in this order by `rest_init` in init/main.c) and all
//! others, and back.

use memchr::memmem::Finder;
use vmi_arch_x86::X86Driver;
use vmi_core::{Memory, PAGE_SIZE, PhysAddr, VirtAddr, Vmi};

use super::search::find_all;
use super::view::{Budget, View, Window};
use super::{Hints, ShapeError};

/// How far behind `tasks` the name of a task is searched. Measured: 0x1b8 to 0x2e8 bytes (kernels 5.10 to 7.2).
const MAX_DISTANCE: u64 = 0x1000;
/// Candidates for the name of `init_task` that are looked at.
const MAX_HITS: usize = 4096;
/// How far behind the start of `init_task` its name is searched: more bytes than the structure has.
const MAX_TASK: u64 = 0x8000;
/// How far behind the start of its code a kernel's image is searched.
const MAX_IMAGE: u64 = 64 << 20;

/// The length of a task's name with its terminator (kernel: `TASK_COMM_LEN` in include/linux/sched.h).
pub(super) const COMM_LEN: usize = 16;

/// Where the direct mapping of physical memory may start on i386 (kernel: `PAGE_OFFSET` in arch/x86/Kconfig).
const PAGE_OFFSETS: [u64; 5] = [0xc000_0000, 0xb000_0000, 0x8000_0000, 0x7800_0000, 0x4000_0000];
/// Where the kernel image lies on x86-64 (kernel: Documentation/arch/x86/x86_64/mm.rst).
const IMAGE: u64 = 0xffff_ffff_8000_0000;
/// The direct mapping of x86-64 starts at a multiple of this, randomised or not (kernel: `kernel_randomize_memory` in
/// arch/x86/mm/kaslr.c).
const DIRECT_MAP_ALIGNMENT: u64 = 1 << 30;
/// Steps of that alignment that are tried: 4 TiB of memory.
const MAX_STEPS: usize = 4096;
/// The lowest kernel address of x86-64 with 5-level paging.
const LOWEST_KERNEL: u64 = 0xff00_0000_0000_0000;
/// The kernel image of x86-64 is moved by multiples of this in virtual and in physical memory (kernel:
/// `CONFIG_PHYSICAL_ALIGN`).
const IMAGE_ALIGNMENT: u64 = 2 << 20;

/// The list of all processes, as virtual addresses of their list nodes, `init_task` first.
#[derive(Debug)]
pub(super) struct TaskList<'v, D: X86Driver> {
    pub(super) view: View<'v, D>,
    pub(super) nodes: Vec<u64>,
    /// From the list node of a task to its name.
    pub(super) to_comm: u64,
}

/// How the name of the first idle task begins.
const NAME: &[u8] = b"swapper";

/// Finds the list of all processes: the longest list that closes. It is searched where the kernel must have it, if that is known, and else in all memory.
pub(super) fn find<'v, D: X86Driver>(vmi: &'v Vmi<D>, hints: &Hints<'_>) -> Result<TaskList<'v, D>, ShapeError> {
    let budget = Budget::new();
    let search = Search { vmi, paged: hints.tables.map(|(mode, root)| View::paged(vmi, mode, root, &budget)), budget };
    let near = search.paged.as_ref().map(|view| names_in_image(view, hints)).unwrap_or_default();
    if let (Some(list), _) = search.longest(hints, &near) {
        return Ok(list);
    }
    let (hits, more) = find_all(vmi, NAME, MAX_HITS);
    let (list, names) = search.longest(hints, &hits);
    list.ok_or(ShapeError::NoTaskList { names, more, exhausted: search.budget.is_spent() })
}

/// The places in the kernel's image that may be the name of `init_task`: in that variable, if it is known, or behind the start of the code.
fn names_in_image<D: X86Driver>(view: &View<'_, D>, hints: &Hints<'_>) -> Vec<PhysAddr> {
    let address = |name: &str| hints.symbols.find(name).map(|symbol| symbol.address.get());
    let range = match (address("init_task"), address("_text").or_else(|| address("_stext"))) {
        (Some(task), _) => task..task.saturating_add(MAX_TASK),
        (None, Some(code)) => code..code.saturating_add(MAX_IMAGE),
        (None, None) => return Vec::new(),
    };
    let finder = Finder::new(NAME);
    let mut page = vec![0; PAGE_SIZE as usize];
    let mut found = Vec::new();
    for at in (VirtAddr::new(range.start).page().get()..range.end).step_by(PAGE_SIZE as usize) {
        if view.read_into(VirtAddr::new(at), &mut page).is_ok() {
            // One across the end of a page (on i386) is missed here, and found in all memory.
            found.extend(finder.find_iter(&page).filter_map(|offset| view.locate(at.checked_add(offset as u64)?)));
        }
        if found.len() >= MAX_HITS {
            break;
        }
    }
    found
}

/// Whether the name of the first idle task is here, padded with zeros.
fn is_swapper<D: X86Driver>(vmi: &Vmi<D>, at: PhysAddr) -> bool {
    let mut name = [0u8; COMM_LEN];
    vmi.read_into(at, &mut name).is_ok() && (name == *b"swapper/0\0\0\0\0\0\0\0" || name == *b"swapper\0\0\0\0\0\0\0\0\0")
}

/// What the search for the list works with.
struct Search<'v, D: X86Driver> {
    vmi: &'v Vmi<D>,
    /// Kernel memory, if its page tables are known.
    paged: Option<View<'v, D>>,
    budget: Budget,
}

impl<'v, D: X86Driver> Search<'v, D> {
    /// The longest list that closes and has the name of its first task at one of these places, and at how many there is such a name.
    fn longest(&self, hints: &Hints<'_>, places: &[PhysAddr]) -> (Option<TaskList<'v, D>>, usize) {
        let mut best: Option<TaskList<'v, D>> = None;
        let mut names = 0usize;
        for &comm_at in places.iter().filter(|at| is_swapper(self.vmi, **at)) {
            names = names.saturating_add(1);
            for width in hints.widths() {
                for to_comm in (0..MAX_DISTANCE).filter(|distance| comm_at.get().wrapping_sub(*distance).is_multiple_of(width)) {
                    let Some(node) = comm_at.checked_sub(to_comm) else { break };
                    let Some(list) = self.walk(width as usize, node, to_comm) else { continue };
                    match &best {
                        Some(known) if known.nodes.len() >= list.nodes.len() => {}
                        _ => best = Some(list),
                    }
                }
            }
        }
        (best, names)
    }

    /// The closed list that starts at the node `first`, if there is one.
    fn walk(&self, width: usize, first: PhysAddr, to_comm: u64) -> Option<TaskList<'v, D>> {
        let next = physical_pointer(self.vmi, first, width)?;
        let prev = physical_pointer(self.vmi, first.checked_add(width as u64)?, width)?;
        // Neither empty nor a list of two, and on aligned addresses.
        if next == prev || !next.is_multiple_of(width as u64) || !prev.is_multiple_of(width as u64) {
            return None;
        }
        let (view, start) = self.start(width, first, next)?;
        let mut nodes = vec![start];
        let mut node = next;
        while node != start {
            // A node whose predecessor is not the one we came from belongs to no list, or this one joins it halfway.
            if view.pointer(node.checked_add(width as u64)?)? != *nodes.last()? {
                return None;
            }
            let name = view.bytes(node.checked_add(to_comm)?, COMM_LEN)?;
            let terminated = memchr::memchr(0, &name).is_some();
            if !terminated || nodes.len() == 2 && !name.starts_with(b"kthreadd\0") {
                return None;
            }
            nodes.push(node);
            node = view.pointer(node)?;
        }
        (nodes.last() == Some(&prev) && nodes.len() > 2).then_some(TaskList { view, nodes, to_comm })
    }

    /// How kernel memory is addressed if `first` is a list node that leads to the one at `next`, and the address of `first` then.
    fn start(&self, width: usize, first: PhysAddr, next: u64) -> Option<(View<'v, D>, u64)> {
        let back = next.checked_add(width as u64)?;
        if let Some(view) = &self.paged {
            let start = view.pointer(back)?;
            return (view.locate(start)? == first).then(|| (view.clone(), start));
        }
        if width == 4 {
            return PAGE_OFFSETS.into_iter().find_map(|base| {
                let start = first.get().checked_add(base)?;
                let place = PhysAddr::new(back.checked_sub(base)?);
                if physical_pointer(self.vmi, place, width)? != start {
                    return None;
                }
                let lowmem = Window { start: base, last: u32::MAX.into(), delta: base.wrapping_neg() };
                Some((View::linear(self.vmi, width, vec![lowmem], &self.budget), start))
            });
        }
        direct_map_places(self.vmi, next).find_map(|at| {
            let start = physical_pointer(self.vmi, at.checked_add(width as u64)?, width)?;
            let displacement = start.wrapping_sub(first.get());
            if start < IMAGE || !displacement.is_multiple_of(IMAGE_ALIGNMENT) {
                return None;
            }
            let base = next.checked_sub(at.get())?;
            let last = base.checked_add(self.vmi.machine().memory.end().get())?;
            let direct_map = Window { start: base, last: last.min(IMAGE.saturating_sub(1)), delta: base.wrapping_neg() };
            let image = Window { start: IMAGE, last: u64::MAX, delta: displacement.wrapping_neg() };
            Some((View::linear(self.vmi, width, vec![direct_map, image], &self.budget), start))
        })
    }
}

/// The places in physical memory that an address of x86-64's direct map may mean: its offset there is known up to a multiple of
/// the map's alignment.
fn direct_map_places<D: X86Driver>(vmi: &Vmi<D>, at: u64) -> impl Iterator<Item = PhysAddr> {
    let kernel_half = (LOWEST_KERNEL..IMAGE).contains(&at);
    let regions = vmi.machine().memory.regions().iter().filter(move |_| kernel_half);
    let steps =
        regions.flat_map(|region| region.start().get() / DIRECT_MAP_ALIGNMENT..region.end().get().div_ceil(DIRECT_MAP_ALIGNMENT));
    let low = at % DIRECT_MAP_ALIGNMENT;
    steps.take(MAX_STEPS).map(move |step| PhysAddr::new(step.saturating_mul(DIRECT_MAP_ALIGNMENT).saturating_add(low)))
}

fn physical_pointer<D: X86Driver>(vmi: &Vmi<D>, at: PhysAddr, width: usize) -> Option<u64> {
    match width {
        4 => vmi.read::<u32>(at).ok().map(u64::from),
        _ => vmi.read::<u64>(at).ok(),
    }
}
