//! Page tables by content: `pgd` in `mm_struct`, the paging mode, and the kernel's own root.
//!
//! Every process has its own root table, `mm->pgd`, and each maps the kernel as all others do (kernel: `pgd_alloc` in
//! arch/x86/mm/pgtable.c). A table under a paging mode is right if it maps the tasks of the machine to where they are.

use rustc_hash::FxHashSet;
use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{Paging, PhysAddr, VirtAddr, Vmi};

use super::findings::Findings;
use super::sample::{Object, Sample};
use super::tasks::Tasks;
use super::types::Kind;
use super::view::{Budget, View};

/// Bytes of each `mm_struct` that are judged. Measured: `pgd` at 0x28 to 0x78, `env_end` at up to 0x2f0 (kernels 5.10 to 7.2).
const MM_SIZE: usize = 0x400;
/// Address spaces that are judged at most.
const MAX_SPACES: usize = 256;
/// Tasks whose mapping is checked at most for each table.
const MAX_CHECKED: usize = 64;

/// The address spaces of the user processes.
#[derive(Debug)]
pub(super) struct Spaces {
    /// Offset of `mm` in `task_struct`.
    pub(super) mm: usize,
    /// Offset of `pgd` in `mm_struct`.
    pub(super) pgd: usize,
    pub(super) mode: PagingMode,
    /// The start of each `mm_struct`, init's first.
    pub(super) sample: Sample,
    /// Where the kernel is known to be: virtual address and physical.
    known: Vec<(VirtAddr, PhysAddr)>,
}

impl Spaces {
    pub(super) fn record(&self, findings: &mut Findings) {
        findings.add("task_struct", "mm", self.mm, Kind::Pointer);
        findings.add("task_struct", "active_mm", self.mm.saturating_add(self.sample.width), Kind::Pointer);
        findings.add("mm_struct", "pgd", self.pgd, Kind::Pointer);
    }

    /// The root table of init, which maps the kernel as every other does.
    pub(super) fn init_root<D: X86Driver>(&self, view: &View<'_, D>) -> Option<PhysAddr> {
        view.locate(self.sample.objects.first()?.word(self.pgd, self.sample.width)?)
    }

    /// Whether the table at `root` maps the kernel where it is.
    pub(super) fn is_root<D: X86Driver>(&self, vmi: &Vmi<D>, budget: &Budget, root: PhysAddr) -> bool {
        maps(vmi, budget, self.mode, root, &self.known)
    }
}

/// Judges every candidate for `mm` by whether a member of what it points at is a root table, different in each.
///
/// Of several answers, none: they would contradict each other.
pub(super) fn find<D: X86Driver>(vmi: &Vmi<D>, view: &View<'_, D>, tasks: &Tasks, candidates: &[usize]) -> Option<Spaces> {
    let modes: &[PagingMode] = match (view.mode(), view.width()) {
        (Some(mode), _) => &[mode],
        (None, 4) => &[PagingMode::Bits32, PagingMode::Pae],
        (None, _) => &[PagingMode::Level4, PagingMode::Level5],
    };
    let known: Vec<(VirtAddr, PhysAddr)> = tasks
        .sample
        .objects
        .iter()
        .take(MAX_CHECKED)
        .filter_map(|task| Some((VirtAddr::new(task.at), view.locate(task.at)?)))
        .collect();
    let mut found = None;
    for &mm in candidates {
        let sample = address_spaces(view, tasks, mm);
        for pgd in (0..MM_SIZE).step_by(sample.width) {
            let Some(roots) = roots(view, &sample, pgd) else { continue };
            for &mode in modes {
                if !roots.iter().all(|&root| maps(vmi, view.budget(), mode, root, &known)) {
                    continue;
                }
                if found.is_some() {
                    return None;
                }
                found = Some((mm, pgd, mode));
            }
        }
    }
    let (mm, pgd, mode) = found?;
    Some(Spaces { mm, pgd, mode, sample: address_spaces(view, tasks, mm), known })
}

/// A copy of the start of each different structure that the tasks' `mm` points at.
fn address_spaces<D: X86Driver>(view: &View<'_, D>, tasks: &Tasks, mm: usize) -> Sample {
    let mut seen = FxHashSet::default();
    let different = tasks.sample.words(mm).flatten().filter(|&at| at != 0 && seen.insert(at)).take(MAX_SPACES);
    let at: Vec<u64> = different.collect();
    let size = least_distance(&at).map_or(MM_SIZE, |distance| MM_SIZE.min(distance as usize));
    let objects = at.into_iter().filter_map(|at| Some(Object { at, bytes: view.bytes(at, size)? })).collect();
    Sample { width: view.width(), objects }
}

/// The least distance between two structures of one kind: neither is longer than that. What follows is the next one's.
fn least_distance(at: &[u64]) -> Option<u64> {
    let mut sorted = at.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).filter_map(|pair| pair.last()?.checked_sub(*pair.first()?)).min()
}

/// Where the tables are that the pointers at `pgd` name, if they are all different and aligned as root tables.
fn roots<D: X86Driver>(view: &View<'_, D>, sample: &Sample, pgd: usize) -> Option<Vec<PhysAddr>> {
    let mut seen = FxHashSet::default();
    let roots: Option<Vec<PhysAddr>> = sample
        .words(pgd)
        .map(|at| {
            let root = view.locate(at?)?;
            // The least alignment, of PAE: Intel SDM, volume 3, section 5.4.1.
            (root.is_aligned(32) && seen.insert(root)).then_some(root)
        })
        .collect();
    roots.filter(|roots| !roots.is_empty())
}

/// Whether the tables at `root` map all that is known to where it is.
fn maps<D: X86Driver>(vmi: &Vmi<D>, budget: &Budget, mode: PagingMode, root: PhysAddr, known: &[(VirtAddr, PhysAddr)]) -> bool {
    known.iter().all(|&(at, there)| {
        budget.spend().is_some() && mode.translate(vmi, root, at).is_ok_and(|translation| translation.at == there)
    })
}
