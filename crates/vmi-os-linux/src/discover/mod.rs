//! Finds the kernel of a Linux guest in raw memory, with nothing else given.
//!
//! Several independent strategies are tried in order of cost ([`Strategy`]). Each of them ends at page tables that map a kernel; in what
//! they map lies the kernel's own symbol table ([`kallsyms`]), and that names the rest: the kernel's root page table, its banner, its
//! type information. Every answer is checked by structure, never by a version: a leftover of another boot, or the copy that the
//! decompressor left behind, is not mapped where it claims to be.

mod assemble;
mod candidates;
mod error;
mod image;
pub mod kallsyms;
mod registers;
mod scan;
#[cfg(test)]
mod tests;
mod trampoline;
mod types;
mod vmcoreinfo;

use std::cell::OnceCell;
use std::sync::Arc;

use candidates::Candidate;
pub use error::{DiscoverError, Failure, Strategy};
use image::KernelImage;
use kallsyms::Reject;
use scan::Hits;
use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::search::{Miss, first_of, search};
use vmi_core::{Liveness, Note, PhysAddr, Symbols, TypeSource, Vmi, live};

use crate::Kernel;
use crate::shape::{self, Hints};

/// Symbol tables that are looked at; more are a trap.
const MAX_TABLES: usize = 32;

/// How often the vCPUs of a running guest are asked for page tables that map a kernel.
const MAX_LOOKS: usize = 4;

/// What the user knows already, and which strategies to use.
#[derive(Clone, Debug)]
pub struct Options {
    /// The strategies to try, in this order; all of them by default.
    pub strategies: Vec<Strategy>,
    /// A page-table root that maps the kernel, as CR3 holds it.
    pub root: Option<PhysAddr>,
    /// Symbols from a file (System.map, vmlinux), at the addresses they were linked for; they are moved to where this kernel runs.
    pub symbols: Option<Arc<Symbols>>,
    /// Structure layouts from a file.
    pub types: Option<Arc<dyn TypeSource>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { strategies: Strategy::ALL.to_vec(), root: None, symbols: None, types: None }
    }
}

/// Finds the kernel.
///
/// # Errors
/// What each strategy missed.
pub fn find<D: X86Driver>(vmi: &Vmi<D>) -> Result<Kernel, DiscoverError> {
    find_with(vmi, &Options::default())
}

/// Finds the kernel with what the user knows.
///
/// # Errors
/// As [`find`].
pub fn find_with<D: X86Driver>(vmi: &Vmi<D>, options: &Options) -> Result<Kernel, DiscoverError> {
    let one = Search { vmi, options, hits: OnceCell::new() };
    let strategies = options.strategies.iter().copied().filter(|&one| one != Strategy::GivenRoot || options.root.is_some());
    let found = search(vmi, strategies, |strategy| {
        one.attempt(strategy).and_then(|kernel| one.is_running(strategy, &kernel).map(|()| kernel))
    });
    let found = found.map_err(|missed| missed.of("Linux", error::HELPS))?;
    // What a cheaper strategy had in hand and could not use is remarkable; what it had not is not.
    let remarks: Vec<_> = found.remarks(1).collect();
    let mut kernel = found.kernel;
    tracing::debug!(root = %kernel.root, banner = kernel.banner, "kernel");
    kernel.remarks.extend(remarks);
    Ok(kernel)
}

/// One search: the strategies that scan all memory share one scan.
struct Search<'s, D: X86Driver> {
    vmi: &'s Vmi<D>,
    options: &'s Options,
    hits: OnceCell<Hits>,
}

impl<D: X86Driver> Search<'_, D> {
    fn attempt(&self, strategy: Strategy) -> Result<Kernel, Failure> {
        let vmi = self.vmi;
        match strategy {
            Strategy::GivenRoot => {
                let root = self.options.root.ok_or(Failure::NotThere("none was given"))?;
                let modes = [PagingMode::Level4, PagingMode::Level5, PagingMode::Pae, PagingMode::Bits32];
                self.first_kernel(modes.into_iter().flat_map(|mode| registers::readings(root, mode)))
            }
            Strategy::Registers => self.kernel_by_registers(),
            Strategy::Note => {
                let note = vmi.machine().notes.iter().find_map(|note| match note {
                    Note::VmCoreInfo(text) => Some(text),
                    _ => None,
                });
                self.first_kernel(vmcoreinfo::roots(note.ok_or(Failure::NotThere("this source has no such note"))?)?)
            }
            Strategy::Trampoline => self.first_kernel(trampoline::roots(vmi)),
            Strategy::VmCoreInfo => self.first_of(&self.hits().vmcoreinfo, |&at| {
                let text = image::bytes(vmi, at.wrapping_add(vmcoreinfo::TEXT), vmcoreinfo::MAX_TEXT);
                self.first_kernel(vmcoreinfo::roots(&text)?)
            }),
            Strategy::Kallsyms => self.kernel_by_symbols(),
            Strategy::Tasks => self.kernel_by_tasks(),
        }
    }

    /// The kernel that a vCPU runs under. In a running guest the process whose page tables a vCPU used may end before they are
    /// read: then the vCPUs are asked again.
    fn kernel_by_registers(&self) -> Result<Kernel, Failure> {
        let mut left = if live::runs(self.vmi) { MAX_LOOKS } else { 1 };
        loop {
            left = left.saturating_sub(1);
            match self.first_kernel(registers::roots(self.vmi)?) {
                Err(Failure::NothingMapped { .. } | Failure::Stale { .. } | Failure::NoSymbols { .. }) if left > 0 => {}
                other => return other,
            }
        }
    }

    /// Whether a kernel that was found in the memory of a live machine runs, as far as the vCPUs tell.
    fn is_running(&self, strategy: Strategy, kernel: &Kernel) -> Result<(), Failure> {
        match strategy {
            Strategy::GivenRoot | Strategy::Registers => Ok(()),
            _ if self.vmi.machine().liveness == Liveness::Frozen => Ok(()),
            _ => registers::run(self.vmi, kernel),
        }
    }

    fn hits(&self) -> &Hits {
        self.hits.get_or_init(|| Hits::scan(self.vmi))
    }

    /// The kernel behind the first symbol table in memory that is in use.
    fn kernel_by_symbols(&self) -> Result<Kernel, Failure> {
        let digits = &self.hits().digits;
        let mut furthest = Failure::NoTable { places: digits.len(), why: None };
        let mut tables = 0usize;
        for &at in digits {
            let table = match Candidate::read(self.vmi, at) {
                Err(Reject::Index) => continue,
                table => table,
            };
            let failure = match table {
                Ok(table) => match self.first_kernel(table.roots(self.vmi)) {
                    Ok(kernel) => return Ok(kernel),
                    Err(_) => Failure::Stale { at, why: "no page tables map it".to_owned() },
                },
                Err(reject) => Failure::NoTable { places: digits.len(), why: Some(reject) },
            };
            if failure.progress() >= furthest.progress() {
                furthest = failure;
            }
            tables = tables.saturating_add(1);
            if tables >= MAX_TABLES {
                break;
            }
        }
        Err(furthest)
    }

    /// The kernel behind the list of its tasks.
    fn kernel_by_tasks(&self) -> Result<Kernel, Failure> {
        if !self.hits().tasks {
            return Err(Failure::NotThere("no task is named swapper"));
        }
        let none = Symbols::default();
        let hints = Hints { symbols: &none, pointer_size: None, tables: None };
        let inferred = shape::infer(self.vmi, &hints).map_err(|error| Failure::NoTasks(error.to_string()))?;
        assemble::inferred(self.vmi, self.options, inferred)
    }

    /// The kernel behind the first of `roots` that maps one.
    fn first_kernel(&self, roots: impl IntoIterator<Item = (PhysAddr, PagingMode)>) -> Result<Kernel, Failure> {
        let roots: Vec<_> = roots.into_iter().collect();
        self.first_of(&roots, |&(root, mode)| assemble::kernel(self.vmi, self.options, &KernelImage::map(self.vmi, root, mode)?))
    }

    /// The first success, else the first of the failures that got furthest.
    fn first_of<T>(&self, items: &[T], kernel: impl FnMut(&T) -> Result<Kernel, Failure>) -> Result<Kernel, Failure> {
        first_of(items, kernel).map_err(|furthest| furthest.unwrap_or(Failure::NotThere("nothing in memory looks like it")))
    }
}
