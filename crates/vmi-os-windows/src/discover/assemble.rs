//! From a kernel's image to a [`Kernel`]: variables, symbols, types, and the process System that proves them.

use std::cell::OnceCell;
use std::sync::Arc;

use vmi_arch_x86::X86Driver;
use vmi_core::{AddressSpace, Result, Symbols, SymbolsBuilder, TypeSource, VirtAddr, Vmi, WindowsDump};

use super::data_scan::{self, Seen};
use super::image::KernelImage;
use super::lead::is_kernel_address;
use super::profiles::{self, Profile};
use super::system::{self, Fit, Place, System};
use super::variables::Variables;
use super::{Failure, Options, build, dump_header, kdbg};
use crate::shape::{self, Hints};
use crate::pe::PeImage;
use crate::{BuiltIn, Kernel};

/// How variables were found, for messages.
const DUMP_HEADER: &str = "the dump's header";
const DEBUGGER_DATA: &str = "the kernel's debugger data";
const CONTENT: &str = "their content";

/// What is known of one kernel while it is put together.
struct Assembly<'a, 'v, D: X86Driver> {
    space: AddressSpace<'v, D>,
    image: &'a KernelImage,
    dump: Option<&'v WindowsDump>,
    variables: Variables,
    debugger_data: Option<kdbg::Found>,
    seen: OnceCell<Seen>,
    remarks: Vec<String>,
}

/// Symbols and types that were chosen, and System as they show it.
struct Chosen {
    symbols: Symbols,
    types: Arc<dyn TypeSource>,
    system: Option<System>,
    remarks: Vec<String>,
}

/// The kernel in `image`.
pub(super) fn kernel<D: X86Driver>(vmi: &Vmi<D>, options: &Options, image: &KernelImage) -> Result<Kernel, Failure> {
    let mut assembly = Assembly {
        space: vmi.address_space(image.root, image.mode),
        image,
        dump: dump_header::note(vmi),
        variables: Variables::default(),
        debugger_data: None,
        seen: OnceCell::new(),
        remarks: Vec::new(),
    };
    assembly.collect();
    let chosen = assembly.choose(options)?;
    Ok(assembly.finish(chosen))
}

impl<D: X86Driver> Assembly<'_, '_, D> {
    /// Variables that name themselves: in the exports, in a dump's header, in the debugger data that it leads to.
    fn collect(&mut self) {
        if let Some(dump) = self.dump {
            let (image, variables) = (self.image, &mut self.variables);
            let mut header = |name, at: Option<VirtAddr>| {
                if let Some(at) = at.filter(|&at| image.contains(at)) {
                    variables.add(name, at, DUMP_HEADER);
                }
            };
            header("PsLoadedModuleList", dump.loaded_modules);
            header("PsActiveProcessHead", dump.active_processes);
            header("KdDebuggerDataBlock", dump.debugger_data);
            let block = dump.debugger_data.and_then(|at| kdbg::at(&self.space, self.image, None, at));
            self.take_debugger_data(block);
        }
        match exports(&self.space, self.image) {
            Ok((exports, lost)) => {
                if lost > 0 {
                    self.remarks.push(format!("{lost} exports of the kernel are not in memory"));
                }
                self.variables.exports = exports;
            }
            Err(why) => self.remarks.push(format!("the exports of the kernel cannot be read: {why}")),
        }
    }

    fn take_debugger_data(&mut self, found: Option<kdbg::Found>) {
        let Some(found) = found.filter(|_| self.debugger_data.is_none()) else { return };
        self.variables.add("KdDebuggerDataBlock", found.at, DEBUGGER_DATA);
        for (name, at) in kdbg::variables(&found, self.image) {
            self.variables.add(name, at, DEBUGGER_DATA);
        }
        self.debugger_data = Some(found);
    }

    fn build_lab(&self) -> Option<VirtAddr> {
        self.debugger_data.as_ref().and_then(|found| found.data.build_lab())
    }

    /// Looks through the kernel's data, once, for what its exports and symbols do not tell.
    fn look_at_data(&mut self) {
        if self.seen.get().is_some() {
            return;
        }
        let seen = self.seen.get_or_init(|| data_scan::search(&self.space, self.image));
        let found = seen.debugger_data.clone();
        let named = [
            ("PsActiveProcessHead", seen.processes.map(|(head, _)| head)),
            ("PsLoadedModuleList", seen.loaded_modules),
            ("PsInitialSystemProcess", seen.system_pointer),
        ];
        self.take_debugger_data(found);
        for (name, at) in named {
            if let Some(at) = at {
                self.variables.add(name, at, CONTENT);
            }
        }
    }

    /// Where System may be beside where symbols say.
    fn place(&self) -> Place {
        Place { inferred: None, saved: self.dump.and_then(|dump| dump.triage).and_then(|triage| triage.process) }
    }

    /// The symbols of a profile with the variables that were found otherwise.
    fn symbols(&mut self, profile: Option<&Symbols>) -> (Symbols, Vec<String>) {
        let names = |symbols: &Symbols| symbols.find("PsActiveProcessHead").is_some();
        if !profile.is_some_and(names) {
            self.look_at_data();
        }
        self.variables.add_to(profile)
    }

    /// The best symbols and types that fit the process System.
    fn choose(&mut self, options: &Options) -> Result<Chosen, Failure> {
        let mut unproven: Option<Chosen> = None;
        let mut failures = Vec::new();
        let (profiles, missing) = profiles::exact(options, self.image);
        self.remarks.extend(missing);
        for Profile { symbols, types, is_exact, remarks } in profiles {
            let (symbols, differences) = self.symbols(symbols.as_deref());
            let Some(types) = types else { continue };
            let remarks: Vec<String> = remarks.into_iter().chain(differences).collect();
            match system::check(&self.space, self.image, &symbols, &*types, self.place()) {
                Fit::Fits(system) if is_exact || system.list.is_ok() => {
                    return Ok(Chosen { symbols, types, system: Some(system), remarks });
                }
                Fit::Fits(system) => unproven = unproven.or(Some(Chosen { symbols, types, system: Some(system), remarks })),
                Fit::Unknown(why) => {
                    let remarks =
                        with(remarks, format!("whether {} belongs to this kernel could not be checked: {why}", types.origin()));
                    unproven = unproven.or(Some(Chosen { symbols, types, system: None, remarks }));
                }
                Fit::Contradicts(why) => failures.push(format!("{} does not fit this kernel: {why}", types.origin())),
            }
        }
        // Types that are exactly this kernel's need no proof; what was wrong with better ones is told.
        if let Some(chosen) = unproven.take() {
            self.remarks.append(&mut failures);
            return Ok(chosen);
        }
        let (symbols, _) = self.symbols(None);
        if let Some(chosen) = self.by_build(&symbols, &mut failures) {
            if chosen.system.as_ref().is_some_and(|system| system.list.is_ok()) {
                self.remarks.append(&mut failures);
                return Ok(chosen);
            }
            unproven = Some(chosen);
        }
        match self.by_shape(&symbols) {
            Ok(chosen) => {
                self.remarks.append(&mut failures);
                Ok(chosen)
            }
            Err(why) => {
                failures.push(why);
                // The header of a dump vouches for its kernel; what was only found in memory may be half of a leftover.
                let Some(chosen) = unproven.filter(|chosen| chosen.system.is_some() || self.dump.is_some()) else {
                    let why = failures.join("; ");
                    return Err(Failure::NotUsable { base: self.image.base, root: self.image.root, why });
                };
                self.remarks.append(&mut failures);
                Ok(chosen)
            }
        }
    }

    /// The kernels of the built-in table with this build number, those that fit.
    fn by_build(&self, symbols: &Symbols, failures: &mut Vec<String>) -> Option<Chosen> {
        let number = build::number(&self.space, symbols, self.dump, self.build_lab());
        let Some(number) = number else {
            failures.push("which build this is could not be found out".to_owned());
            return None;
        };
        let Some(mut kernels) = BuiltIn::for_build(number, self.image.mode.is_long()) else {
            failures.push(format!("the built-in table has no kernel of build {number}"));
            return None;
        };
        let mut why = None;
        let any = kernels.retain(|kernel| match system::check(&self.space, self.image, symbols, kernel, self.place()) {
            Fit::Fits(system) => system.list.is_ok(),
            Fit::Unknown(_) => false,
            Fit::Contradicts(reason) => {
                why = Some(reason);
                false
            }
        });
        let types = kernels.agreed();
        let fit = system::check(&self.space, self.image, symbols, &types, self.place());
        let mut remarks = kernels.remarks();
        let system = match fit {
            Fit::Fits(system) => Some(system),
            Fit::Unknown(reason) => {
                remarks.push(format!("whether they fit could not be checked: {reason}"));
                None
            }
            Fit::Contradicts(reason) => {
                failures.push(format!("the built-in table's kernels of build {number} do not fit: {}", why.unwrap_or(reason)));
                return None;
            }
        };
        if !any && let Some(why) = why {
            failures.push(format!("not all of the built-in table's kernels of build {number} fit: {why}"));
        }
        Some(Chosen { symbols: self.variables.add_to(Some(symbols)).0, types: Arc::new(types), system, remarks })
    }

    /// Types that are inferred from the process System and its neighbours.
    fn by_shape(&self, symbols: &Symbols) -> Result<Chosen, String> {
        let pointer = symbols.find("PsInitialSystemProcess").and_then(|symbol| self.space.read_pointer(symbol.address).ok());
        let node = self.seen.get().and_then(|seen| seen.processes).map(|(_, node)| node);
        let head = symbols.find("PsActiveProcessHead").map(|symbol| symbol.address);
        let first = head.and_then(|head| self.space.read_pointer(head).ok());
        let usable = |at: &VirtAddr| is_kernel_address(self.image.mode, *at);
        let hints = Hints {
            image: (self.image.base, self.image.header.size),
            system: pointer.filter(usable),
            node: node.or(first).filter(usable),
            debugger_data: self.debugger_data.as_ref().map(|found| &found.data),
        };
        let inferred = shape::infer(&self.space, &hints).map_err(|error| error.to_string())?;
        let types: Arc<dyn TypeSource> = Arc::new(inferred.types);
        let (symbols, _) = self.variables.add_to(Some(symbols));
        match system::check(&self.space, self.image, &symbols, &*types, Place { inferred: Some(inferred.system), ..self.place() }) {
            Fit::Fits(system) => Ok(Chosen { symbols, types, system: Some(system), remarks: inferred.remarks }),
            Fit::Unknown(why) | Fit::Contradicts(why) => Err(format!("what was inferred by shape does not hold: {why}")),
        }
    }

    fn finish(mut self, chosen: Chosen) -> Kernel {
        let Chosen { symbols, types, system, mut remarks } = chosen;
        // With symbols an encoded block can be read, and compared.
        if self.debugger_data.is_none() {
            let at = symbols.find("KdDebuggerDataBlock").map(|symbol| symbol.address);
            let found = at.and_then(|at| kdbg::at(&self.space, self.image, Some(&symbols), at));
            if let Some(found) = &found {
                tracing::debug!(at = %found.at, encoded = found.was_encoded, "debugger data");
            }
            self.take_debugger_data(found);
        }
        let mut root = self.image.root;
        if let Some(system) = &system {
            root = system.root;
            if let Some(head) = system.head {
                self.variables.add("PsActiveProcessHead", head, CONTENT);
            }
            if let Err(why) = &system.list {
                remarks.push(format!("the list of processes could not be followed to its end: {why}"));
            }
        } else {
            remarks.push(format!("the page tables of the process System are not known; those at {root} are used"));
        }
        let (symbols, differences) = self.variables.add_to(Some(&symbols));
        remarks.extend(differences.into_iter().filter(|difference| !self.remarks.contains(difference)));
        let build = build::number(&self.space, &symbols, self.dump, self.build_lab());
        self.remarks.extend(remarks);
        let mut unique = Vec::new();
        for remark in self.remarks {
            if !unique.contains(&remark) {
                unique.push(remark);
            }
        }
        Kernel {
            mode: self.image.mode,
            root,
            base: self.image.base,
            size: self.image.header.size,
            pdb: self.image.pdb.clone(),
            build,
            symbols: Arc::new(symbols),
            types,
            remarks: unique,
        }
    }
}

fn with(mut remarks: Vec<String>, remark: String) -> Vec<String> {
    remarks.push(remark);
    remarks
}

/// The exports of the image, and how many are lost.
fn exports<D: X86Driver>(space: &AddressSpace<'_, D>, image: &KernelImage) -> Result<(Symbols, usize)> {
    let pe = PeImage::new(space, image.base)?;
    let mut symbols = SymbolsBuilder::default();
    let lost = pe.exports()?.map_or(0, |exports| exports.add_to(&mut symbols).len());
    Ok((symbols.build(), lost))
}
