//! Windows: its files, its structures as bytes, and a synthetic machine with places in it changed.

use std::sync::OnceLock;

use nt_machine::{Build, NtMachine, Options as MachineOptions};
use vmi_core::synthetic::{SyntheticDriver, Unpaged};
use vmi_core::{PhysAddr, VirtAddr, Vmi};
use vmi_os_windows::discover::{self, DebuggerData, Options};
use vmi_os_windows::registry::{Cells, Hive, HiveFile};
use vmi_os_windows::{SymbolFile, SymbolStore, Windows, arguments, pe, symbol_files, symbol_store};

use super::head;
use super::patched::{Patched, PatchedMemory};

/// A PE file as the loader maps it, at any address.
pub fn pe_image(data: &[u8]) -> bool {
    let base = VirtAddr::new(0x10000);
    let vmi = Vmi::new(SyntheticDriver::new([(PhysAddr::new(base.get()), data.to_vec())]));
    pe::exercise(&vmi.address_space(PhysAddr::ZERO, Unpaged), base) > 0
}

/// A program database, a Volatility symbol file of Windows, or a file of the cache.
pub fn symbols(data: &[u8]) -> bool {
    SymbolFile::parse(data).is_ok_and(|file| symbol_files::exercise(&file) > 0)
}

/// A cabinet with one file.
pub fn cabinet(data: &[u8]) -> bool {
    symbol_files::exercise_cabinet(data).is_some()
}

/// A symbol path, and a command line.
pub fn texts(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    arguments(&text);
    symbol_store::exercise(&text) > 0
}

/// The debugger's data block, in clear and encoded.
pub fn debugger_data(data: &[u8]) -> bool {
    if let Some((keys, data)) = head::<24>(data) {
        let key = |at: usize| u64::from_le_bytes(keys[at..][..8].try_into().expect("eight bytes"));
        if let Ok(found) = DebuggerData::decode(data, VirtAddr::new(key(0)), key(8), key(16)) {
            found.variables().for_each(drop);
        }
    }
    DebuggerData::parse(data).is_ok_and(|found| found.variables().count() > 0)
}

/// A registry hive as a file.
pub fn hive(data: &[u8]) -> bool {
    HiveFile::parse(data).is_ok_and(|file| keys(&Hive::new(file)) > 0)
}

/// How many keys and values of a hive can be read, of the first some thousand.
fn keys(hive: &Hive<impl Cells>) -> usize {
    let Ok(root) = hive.root() else { return 0 };
    let keys = root.tree().take(5000).flatten();
    keys.map(|found| {
        let _ = found.key.class();
        1 + found.key.values().take(1000).flatten().filter(|value| value.data().is_ok()).count()
    })
    .sum()
}

/// Builds of each kind of page tables, and of structures far apart.
const BUILDS: [&str; 6] =
    ["win10_x64_19041", "xp_sp3_x86", "xp_sp3_x86_pae", "win7_sp1_x64", "win10_x86_19041", "win11_x64_26100"];

/// A machine in memory, and where in it a change matters.
struct Original {
    memory: PatchedMemory,
    places: Vec<u64>,
    symbols: Options,
}

/// One of [`BUILDS`].
fn original(which: usize) -> &'static Original {
    static MADE: [OnceLock<Original>; BUILDS.len()] = [const { OnceLock::new() }; BUILDS.len()];
    MADE[which].get_or_init(|| {
        let build = Build::named(BUILDS[which]).expect("a build of the table");
        let (machine, _) = NtMachine::typical_with(build, MachineOptions::default());
        let truth = machine.truth();
        let objects = truth
            .processes
            .iter()
            .flat_map(|process| [process.eprocess].into_iter().chain(process.threads.iter().map(|thread| thread.0)));
        let objects = objects.chain(truth.modules.iter().map(|module| module.entry));
        let places = objects.chain(truth.symbols.values().copied()).chain([truth.kernel_base]);
        let mut places: Vec<u64> = places.filter_map(|at| machine.translate(truth.system_root, at)).collect();
        places.push(truth.system_root);
        places.extend(truth.processes.iter().map(|process| process.dtb));
        let file = SymbolFile::parse(machine.isf().to_string().as_bytes()).expect("the machine's own symbol file");
        let memory = PatchedMemory::new(machine.physical().pages());
        Original { memory, places, symbols: Options { store: SymbolStore::parse(""), ..Options::default() }.file(file) }
    })
}

/// Everything of Windows on a synthetic machine. The first byte says whether its symbol file is known, and behind the lowest bit which
/// machine it is; behind it: places (2 bytes), offsets from them (2 bytes) and what is written there (8 bytes).
pub fn attach(data: &[u8]) -> bool {
    let Some(([chosen], changes)) = head::<1>(data) else { return false };
    let Original { memory, places, symbols } = original(usize::from(chosen >> 1) % BUILDS.len());
    let patches = changes.chunks_exact(12).take(64).map(|change| {
        let number = |at: usize| usize::from(u16::from_le_bytes([change[at], change[at + 1]]));
        (places[number(0) % places.len()].wrapping_add(number(2) as u64 % 0x1000), &change[4..])
    });
    memory.with(patches, |vmi| {
        let hermetic = Options { store: SymbolStore::parse(""), ..Options::default() };
        let options = if chosen & 1 == 1 { symbols } else { &hermetic };
        let found = discover::find_with(vmi, options).map_err(drop);
        let Ok(windows) = found.and_then(|kernel| Windows::with_kernel(vmi, kernel).map_err(drop)) else { return false };
        everything(&windows);
        true
    })
}

/// Reads all lists of the guest, each up to some thousand rows.
fn everything(windows: &Windows<'_, Patched>) {
    const ROWS: usize = 3000;
    windows.kernel_modules().take(ROWS).flatten().for_each(|module| drop((module.name(), module.path(), module.size())));
    let _ = (windows.unloaded_drivers(), windows.services(), windows.object_types());
    windows.named_objects().take(ROWS).for_each(drop);
    for process in windows.processes().take(200).flatten() {
        let _ = (process.image_path(), process.token(), process.session(), process.module_views());
        if let Ok(Some(peb)) = process.peb() {
            let _ = (peb.command_line(), peb.environment(), peb.current_directory());
        }
        process.threads().take(ROWS).flatten().for_each(|thread| drop((thread.tid(), thread.state(), thread.name())));
        process.vads().take(ROWS).flatten().for_each(|vad| drop((vad.kind(), vad.protection(), vad.file())));
        process
            .handles()
            .take(ROWS)
            .flatten()
            .for_each(|handle| drop((handle.object().type_name(), handle.object().full_name())));
    }
    windows.hives().take(50).flatten().for_each(|hive| _ = keys(&Hive::new(hive)));
    let _ = windows.survey_processes();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_machine_is_found() {
        for which in 0..BUILDS.len() as u8 {
            assert!(attach(&[which << 1 | 1]), "{} with its symbol file", BUILDS[usize::from(which)]);
        }
    }
}
