//! Finds the kernel of a Windows guest in raw memory, with nothing else given.
//!
//! Several independent strategies are tried in order of cost ([`Strategy`]). Each of them ends at page tables that may map a kernel; in what
//! they map its image is searched, and that leads to the rest: its program database, its exports, its debugger data, the process System.
//! Every answer is checked by structure, never by a version: symbols and types from whatever source must describe the process System as it is in
//! memory, else the next source is tried.

mod assemble;
mod build;
mod data_scan;
mod dump_header;
mod error;
mod image;
mod kdbg;
mod lead;
mod locate;
mod low_stub;
mod page_tables;
mod physical_scan;
mod profiles;
mod registers;
mod scan;
mod system;
#[cfg(test)]
mod tests;
mod variables;

use std::cell::OnceCell;
use std::sync::Arc;

pub use error::{DiscoverError, Failure, Strategy};
pub use kdbg::{DebuggerData, KdbgError};
pub(crate) use system::{ID as SYSTEM_ID, NAME as SYSTEM_NAME, OBJECT_TYPE, PROCESS_OBJECT};

use image::KernelImage;
use lead::Lead;
use scan::{Hits, Part};
use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::search::{Miss, first_of, search};
use vmi_core::{Liveness, Paging, PhysAddr, Symbols, TypeSource, VirtAddr, Vmi, live};

use crate::{Kernel, SymbolFile, SymbolStore};

/// How often the vCPUs of a running guest are asked for page tables that map a kernel.
const MAX_LOOKS: usize = 4;
/// Page tables that are looked at for one strategy. Each process has some, and all of them map the kernel.
const MAX_LEADS: usize = 64;
/// Kernels in one memory that are compared: more than a leftover or two is a trap.
const MAX_KERNELS: usize = 4;
/// Where the tables of the process System are, unless firmware took the place.
const LOW_MEMORY: u64 = 16 << 20;

/// What the user knows already, and which strategies to use.
#[derive(Clone, Debug)]
pub struct Options {
    /// The strategies to try, in this order; all of them by default.
    pub strategies: Vec<Strategy>,
    /// A page-table root that maps the kernel, as CR3 holds it.
    pub root: Option<PhysAddr>,
    /// Symbols from a file, as offsets from the start of the kernel's image; they are moved to where this kernel runs.
    pub symbols: Option<Arc<Symbols>>,
    /// Structure layouts from a file.
    pub types: Option<Arc<dyn TypeSource>>,
    /// Where the kernel's symbol file is looked for: the user's symbol path by default.
    pub store: SymbolStore,
}

impl Options {
    /// With the symbols and types of a file that the user names.
    #[must_use]
    pub fn file(mut self, file: SymbolFile) -> Self {
        self.symbols = Some(Arc::new(file.symbols(VirtAddr::ZERO)));
        self.types = Some(Arc::new(file));
        self
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            strategies: Strategy::ALL.to_vec(),
            root: None,
            symbols: None,
            types: None,
            store: SymbolStore::from_environment(),
        }
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
    let one = Search { vmi, options, low: OnceCell::new(), rest: OnceCell::new() };
    let strategies = options.strategies.iter().copied().filter(|&one| one != Strategy::GivenRoot || options.root.is_some());
    let found = search(vmi, strategies, |strategy| {
        one.attempt(strategy).and_then(|kernel| one.is_running(strategy, &kernel).map(|()| kernel))
    });
    let found = found.map_err(|missed| missed.of("Windows", error::HELPS))?;
    // What a cheaper strategy had in hand and could not use is remarkable; what it had not is not.
    let remarks: Vec<_> = found.remarks(2).collect();
    let mut kernel = found.kernel;
    tracing::debug!(root = %kernel.root, base = %kernel.base, "kernel");
    kernel.remarks.extend(remarks);
    Ok(kernel)
}

/// One search: the strategies that scan all memory share one scan.
struct Search<'s, D: X86Driver> {
    vmi: &'s Vmi<D>,
    options: &'s Options,
    low: OnceCell<Hits>,
    rest: OnceCell<Hits>,
}

impl<D: X86Driver> Search<'_, D> {
    fn attempt(&self, strategy: Strategy) -> Result<Kernel, Failure> {
        match strategy {
            Strategy::GivenRoot => {
                let root = self.options.root.ok_or(Failure::NotThere("none was given"))?;
                let modes = [PagingMode::Level4, PagingMode::Level5, PagingMode::Pae, PagingMode::Bits32];
                self.first_kernel(&modes.map(|mode| Lead::new(root, mode)))
            }
            Strategy::Registers => self.kernel_by_registers(),
            Strategy::DumpHeader => {
                let dump = dump_header::note(self.vmi).ok_or(Failure::NotThere("this source is no crash dump"))?;
                self.first_kernel(&dump_header::leads(dump))
            }
            Strategy::LowStub => self.first_kernel(&low_stub::leads(self.vmi)),
            Strategy::PageTables => self.kernel_by_page_tables(),
            Strategy::PhysicalScan => self.kernel_by_image(),
        }
    }

    /// The kernel that a vCPU runs under. In a running guest the process whose page tables a vCPU used may end before they are
    /// read: then the vCPUs are asked again.
    fn kernel_by_registers(&self) -> Result<Kernel, Failure> {
        let mut left = if live::runs(self.vmi) { MAX_LOOKS } else { 1 };
        loop {
            left = left.saturating_sub(1);
            let leads = registers::leads(self.vmi)?;
            let found = self.first_kernel(&leads).or_else(|failure| {
                // All vCPUs may be in user mode, on tables without the kernel.
                let kernel: Vec<_> = leads.iter().flat_map(|lead| registers::kernel_tables(self.vmi, lead)).collect();
                if kernel.is_empty() { Err(failure) } else { self.first_kernel(&kernel) }
            });
            match found {
                Err(Failure::NoImage { .. } | Failure::NotUsable { .. } | Failure::UserTables { .. }) if left > 0 => {}
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

    /// What a scan of low memory finds, and of the rest.
    fn low(&self) -> &Hits {
        self.low.get_or_init(|| Hits::scan(self.vmi, Part { from: 0, to: LOW_MEMORY }))
    }

    fn rest(&self) -> &Hits {
        self.rest.get_or_init(|| Hits::scan(self.vmi, Part { from: LOW_MEMORY, to: u64::MAX }))
    }

    /// The kernel that page tables in memory map: those in low memory, then all others. A memory may hold the tables of a kernel that ran before
    /// the last reset; of several kernels the one whose clock is ahead is taken.
    fn kernel_by_page_tables(&self) -> Result<Kernel, Failure> {
        let low = page_tables::leads(&self.low().tables);
        let first = match self.latest_kernel(&low) {
            Ok(kernel) => return Ok(kernel),
            Err(failure) => failure,
        };
        let rest = page_tables::leads(&self.rest().tables);
        let looked_at = low.len().saturating_add(rest.len());
        if looked_at == 0 {
            return Err(Failure::NoPageTables { looked_at, furthest: None });
        }
        self.latest_kernel(&rest).map_err(|last| {
            let furthest = if last.progress() > first.progress() { last } else { first };
            match furthest {
                Failure::NotThere(_) => Failure::NoPageTables { looked_at, furthest: None },
                furthest if furthest.progress() > 2 => furthest,
                furthest => Failure::NoPageTables { looked_at, furthest: Some(Box::new(furthest)) },
            }
        })
    }

    /// The kernel behind one of `leads`; of several, the one that ran last.
    fn latest_kernel(&self, leads: &[Lead]) -> Result<Kernel, Failure> {
        let first = self.first_kernel(leads)?;
        let place = |root, kernel: &Kernel| kernel.mode.translate(self.vmi, root, kernel.base).ok().map(|page| page.at);
        let mut kernels = vec![first];
        for lead in leads.iter().take(MAX_LEADS) {
            let is_known = |kernel: &Kernel| lead.mode != kernel.mode || place(lead.root, kernel) == place(kernel.root, kernel);
            if kernels.len() < MAX_KERNELS
                && !kernels.iter().any(is_known)
                && let Ok(other) = self.first_kernel(core::slice::from_ref(lead))
            {
                kernels.push(other);
            }
        }
        let time = |kernel: &Kernel| build::system_time(&self.vmi.address_space(kernel.root, kernel.mode));
        let others = kernels.len().saturating_sub(1);
        let latest = kernels.into_iter().max_by_key(|kernel| (time(kernel), core::cmp::Reverse(kernel.root)));
        let mut latest = latest.ok_or(Failure::NotThere("nothing in memory looks like it"))?;
        if others > 0 {
            latest.remarks.push(format!(
                "memory holds {others} more kernels, leftovers of earlier starts: the one whose clock is ahead was taken"
            ));
        }
        Ok(latest)
    }

    /// The kernel whose image lies in physical memory, by page tables that map it.
    fn kernel_by_image(&self) -> Result<Kernel, Failure> {
        let all = [self.low(), self.rest()];
        let mut furthest =
            Failure::NotThere("no image of a Windows kernel, and no record of its program database, lies in memory");
        let mut keep = |failure: Failure| {
            if failure.progress() >= furthest.progress() {
                furthest = failure;
            }
        };
        for (at, pdb) in all.iter().flat_map(|hits| &hits.code_views) {
            keep(Failure::Unmapped { image: format!("a record of {pdb}"), at: *at });
        }
        for (at, header) in all.iter().flat_map(|hits| &hits.images).take(MAX_KERNELS) {
            let mode = if header.machine == 0x8664 { PagingMode::Level4 } else { PagingMode::Pae };
            let image = format!("the image of a Windows kernel (time stamp {:#x}, {:#x} bytes)", header.timestamp, header.size);
            let leads = physical_scan::leads(self.vmi, *at, mode);
            match self.first_kernel(&leads) {
                Ok(kernel) => return Ok(kernel),
                Err(failure) if failure.progress() > 4 => keep(failure),
                Err(_) => keep(Failure::Unmapped { image, at: *at }),
            }
        }
        Err(furthest)
    }

    /// The kernel behind the first of `leads` that maps one, else the first of the failures that got furthest.
    fn first_kernel(&self, leads: &[Lead]) -> Result<Kernel, Failure> {
        let furthest = first_of(leads.iter().take(MAX_LEADS), |lead| {
            locate::image(self.vmi, lead).and_then(|image: KernelImage| assemble::kernel(self.vmi, self.options, &image))
        });
        furthest.map_err(|furthest| furthest.unwrap_or(Failure::NotThere("nothing in memory looks like it")))
    }
}
