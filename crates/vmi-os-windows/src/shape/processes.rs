//! The process System, and all processes in its list: where their names, ids, page tables and links are.

use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{AddressSpace, Paging, PhysAddr, VirtAddr, list};

use super::findings::{Doubt, Findings, only};
use super::object::{Object, is_kernel};
use super::{Hints, ShapeError};
use crate::discover::{PROCESS_OBJECT, SYSTEM_ID, SYSTEM_NAME};

/// The links of a process are at most this far behind its start.
const LINKS_REACH: u64 = 0x800;
/// Processes that are looked at.
const MAX_PROCESSES: usize = 96;
/// Nodes of a list that are followed.
const MAX_NODES: usize = 1 << 20;
/// CR3 is in the first bytes of a process.
const PAGE_TABLE: core::ops::Range<usize> = 0x10..0x60;

/// A process that was found.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) object: Object,
    pub(super) id: u64,
    /// Its page tables.
    pub(super) root: PhysAddr,
}

/// System first, then others in the order of their list.
#[derive(Clone, Debug)]
pub(super) struct Processes {
    pub(super) all: Vec<Process>,
    pub(super) mode: PagingMode,
    pub(super) links: usize,
    pub(super) name: usize,
}

impl Processes {
    /// Finds System by `hints`, and the others by its links.
    pub(super) fn find<D: X86Driver>(
        space: &AddressSpace<'_, D>,
        hints: &Hints<'_>,
        findings: &mut Findings,
    ) -> Result<Self, ShapeError> {
        let mode = space.mode();
        let system = hints.system.and_then(|at| Object::read(space, at, PROCESS_OBJECT));
        let (system, page_table) = system
            .and_then(|object| Some((page_table(space, &object)?, object)))
            .or_else(|| before(space, hints.node?))
            .map(|(page_table, object)| (object, page_table))
            .ok_or(ShapeError::NoSystem)?;
        let names: Vec<_> = system.offsets(page_table).filter(|&at| is_name(&system, at)).collect();
        let links = only(system.offsets(page_table).filter(|&at| is_links(space, hints, &system, at, &names)));
        let links = links.map_err(|doubt| ShapeError::NoLinks { why: doubt.to_string() })?;
        let name = names.into_iter().find(|&name| name > links).ok_or(ShapeError::NoSystem)?;
        let width = system.width;
        findings.add("_KPROCESS", "DirectoryTableBase", page_table as u64);
        findings.add("_EPROCESS", "Pcb", 0);
        findings.add("_EPROCESS", "UniqueProcessId", links.saturating_sub(width) as u64);
        findings.add("_EPROCESS", "ActiveProcessLinks", links as u64);
        findings.add("_EPROCESS", "ImageFileName", name as u64);

        let process = |object: Object| {
            let id = object.word(links.checked_sub(width)?)?;
            let root = mode.top_table(PhysAddr::new(object.word(page_table)?));
            Some(Process { object, id, root })
        };
        let start = system.at.wrapping_add(links as u64);
        let mut all: Vec<Process> = process(system).into_iter().collect();
        let identity = |node: VirtAddr| Ok(space.read_pointer(node.wrapping_sub(width as u64))?.get() as u32);
        for node in list::nodes(space, start, "the list of processes", MAX_NODES, identity).take(MAX_PROCESSES) {
            let Ok(node) = node else { break };
            let at = node.at.wrapping_sub(links as u64);
            if !hints.in_image(node.at) {
                all.extend(Object::read(space, at, PROCESS_OBJECT).and_then(process));
            }
        }
        Ok(Self { all, mode, links, name })
    }

    /// Bytes in a pointer.
    pub(super) fn mode_width(&self) -> usize {
        self.mode.pointer_size()
    }

    pub(super) fn system(&self) -> Option<&Process> {
        self.all.first()
    }

    /// All but System.
    pub(super) fn others(&self) -> impl Iterator<Item = &Process> + Clone {
        self.all.iter().skip(1)
    }

    /// Offsets at which a pointer can be in all of them, behind the links.
    pub(super) fn offsets(&self) -> impl Iterator<Item = usize> + use<> {
        let shortest = self.all.iter().map(|process| process.object.bytes().len()).min().unwrap_or_default();
        let width = self.mode.pointer_size();
        (0..shortest.saturating_sub(width)).step_by(width)
    }
}

/// The process that `node` is part of: the nearest start before it that has page tables.
fn before<D: X86Driver>(space: &AddressSpace<'_, D>, node: VirtAddr) -> Option<(usize, Object)> {
    // Objects of the pool are aligned to 8 bytes in 32-bit kernels, to 16 in others; the header of an object keeps that.
    (1..=LINKS_REACH / 8).find_map(|step| {
        let object = Object::read(space, node.checked_sub(step.checked_mul(8)?)?, PROCESS_OBJECT)?;
        Some((page_table(space, &object)?, object))
    })
}

/// Where the process has the root of page tables that map the kernel: the same as those in use, or others that do.
fn page_table<D: X86Driver>(space: &AddressSpace<'_, D>, process: &Object) -> Option<usize> {
    let mode = space.mode();
    let place = |root| mode.translate(space.vmi(), root, process.at).ok().map(|page| page.at);
    let expected = place(space.root())?;
    PAGE_TABLE.step_by(process.width).find(|&at| {
        let root = process.word(at).map(PhysAddr::new).filter(|root| root.get() > 0xfff);
        root.is_some_and(|root| mode.top_table(root) == space.root() || place(mode.top_table(root)) == Some(expected))
    })
}

fn is_name(object: &Object, at: usize) -> bool {
    object.bytes().get(at..).is_some_and(|rest| rest.starts_with(SYSTEM_NAME))
}

/// Whether System's links are at `at`: the id 4 stands before them, and both neighbours lead back. The neighbours are processes with a name, or
/// the list's head in the image.
fn is_links<D: X86Driver>(space: &AddressSpace<'_, D>, hints: &Hints<'_>, system: &Object, at: usize, names: &[usize]) -> bool {
    let width = system.width;
    let here = system.at.wrapping_add(at as u64);
    let id = at.checked_sub(width).and_then(|at| system.word(at));
    let (Some(SYSTEM_ID), Some(next), Some(last)) = (id, system.word(at), system.word(at.saturating_add(width))) else {
        return false;
    };
    if !is_kernel(space.mode(), next) || !is_kernel(space.mode(), last) {
        return false;
    }
    let (next, last) = (VirtAddr::new(next), VirtAddr::new(last));
    let back = |at: VirtAddr| space.read_pointer(at).is_ok_and(|to| to == here);
    if !back(next.wrapping_add(width as u64)) || !back(last) {
        return false;
    }
    let belongs = |node: VirtAddr| {
        hints.in_image(node)
            || Object::read(space, node.wrapping_sub(at as u64), PROCESS_OBJECT).is_some_and(|process| {
                let named = |&name: &usize| process.bytes().get(name).is_some_and(u8::is_ascii_graphic);
                names.iter().any(named)
            })
    };
    belongs(next) && belongs(last)
}

/// The only offset behind `from` at which `fits` holds for System and for all others.
pub(super) fn only_offset(processes: &Processes, from: usize, fits: impl Fn(usize) -> bool) -> Result<usize, Doubt> {
    only(processes.offsets().filter(|&at| at >= from && fits(at)))
}
