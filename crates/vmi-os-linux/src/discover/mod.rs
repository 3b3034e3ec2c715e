//! Finds the kernel of a Linux guest in raw memory, with nothing else given.
//!
//! Several independent strategies are tried in order of cost ([`Strategy`]). Each of them ends at page tables that map a kernel; in what
//! they map lies the kernel's own symbol table ([`kallsyms`]), and that names the rest: the kernel's root page table, its banner, its
//! type information. Every answer is checked by structure, never by a version: a leftover of another boot, or the copy that the
//! decompressor left behind, is not mapped where it claims to be.

mod assemble;
mod error;
mod image;
pub mod kallsyms;
mod registers;
mod trampoline;
mod types;
mod vmcoreinfo;

use std::sync::Arc;

pub use error::{DiscoverError, Failure, Strategy};
use image::KernelImage;
use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{Note, PhysAddr, Symbols, TypeSource, Vmi};

use crate::Kernel;

/// What the user knows already, and which strategies to use.
#[derive(Clone, Debug)]
pub struct Options {
    /// The strategies to try, in this order.
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
    let mut attempts = Vec::new();
    for &strategy in &options.strategies {
        if strategy == Strategy::GivenRoot && options.root.is_none() {
            continue;
        }
        match attempt(vmi, options, strategy) {
            Ok(kernel) => {
                tracing::debug!(%strategy, root = %kernel.root, banner = kernel.banner, "kernel found");
                return Ok(kernel);
            }
            Err(failure) => {
                tracing::debug!(%strategy, %failure, "no kernel");
                attempts.push((strategy, failure));
            }
        }
    }
    Err(DiscoverError { machine: vmi.machine().name.clone(), attempts })
}

fn attempt<D: X86Driver>(vmi: &Vmi<D>, options: &Options, strategy: Strategy) -> Result<Kernel, Failure> {
    match strategy {
        Strategy::GivenRoot => {
            let root = options.root.ok_or(Failure::NotThere("no root was given"))?;
            let modes = [PagingMode::Level4, PagingMode::Level5, PagingMode::Pae, PagingMode::Bits32];
            first_kernel(vmi, options, modes.into_iter().flat_map(|mode| registers::readings(root, mode)))
        }
        Strategy::Registers => first_kernel(vmi, options, registers::roots(vmi)?),
        Strategy::Note => {
            let mut notes = vmi.machine().notes.iter().filter_map(|note| match note {
                Note::VmCoreInfo(text) => Some(text),
                _ => None,
            });
            let text = notes.next().ok_or(Failure::NotThere("this source has no such note"))?;
            first_kernel(vmi, options, vmcoreinfo::roots(text)?)
        }
        Strategy::Trampoline => first_kernel(vmi, options, trampoline::roots(vmi)),
        Strategy::VmCoreInfo | Strategy::Kallsyms => Err(Failure::NotThere("soon")),
    }
}

/// The kernel behind the first of `roots` that maps one.
fn first_kernel<D: X86Driver>(
    vmi: &Vmi<D>,
    options: &Options,
    roots: impl IntoIterator<Item = (PhysAddr, PagingMode)>,
) -> Result<Kernel, Failure> {
    let mut failure = Failure::NotThere("no page table that could be a kernel's");
    for (root, mode) in roots {
        match KernelImage::map(vmi, root, mode).and_then(|image| assemble::kernel(vmi, options, &image)) {
            Ok(kernel) => return Ok(kernel),
            // The failure that got furthest tells most.
            Err(later) if !matches!(later, Failure::NothingMapped { .. }) => failure = later,
            Err(later) if matches!(failure, Failure::NotThere(_)) => failure = later,
            Err(_) => {}
        }
    }
    Err(failure)
}
