//! The whole Linux layer on a real image that somebody has tampered with.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use vmi_arch_x86::X86;
use vmi_core::{
    Driver, Guest, GuestMapping, Liveness, MachineInfo, Memory, MemoryMap, PAGE_SIZE, PhysAddr, Piece, Region, Result, Vmi,
};
use vmi_driver_file::ImageDriver;
use vmi_os_linux::Linux;

use super::head;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/debian-6.12.raw.zst");

/// The demo image in memory, and places in it where a change matters.
struct Original {
    bytes: Mutex<Arc<Vec<u8>>>,
    places: Vec<u64>,
}

struct Patched {
    machine: MachineInfo,
    mapping: GuestMapping,
}

impl Patched {
    fn new(bytes: Arc<Vec<u8>>) -> Self {
        let region = Region::new(PhysAddr::ZERO, bytes.len() as u64).expect("the demo image");
        let mapping = GuestMapping::frozen(bytes, &[Piece { region, offset: 0 }]).expect("one piece");
        let machine = MachineInfo {
            name: "patched demo image".to_owned(),
            memory: MemoryMap::new([region]),
            liveness: Liveness::Frozen,
            notes: Vec::new(),
        };
        Self { machine, mapping }
    }
}

impl Driver for Patched {
    type Arch = X86;

    fn machine(&self) -> &MachineInfo {
        &self.machine
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        self.mapping.read_into(at, buf)
    }

    fn mapping(&self) -> Option<&GuestMapping> {
        Some(&self.mapping)
    }
}

fn original() -> &'static Original {
    static ORIGINAL: OnceLock<Original> = OnceLock::new();
    ORIGINAL.get_or_init(|| {
        let demo = Vmi::new(ImageDriver::open(DEMO).expect("the demo image"));
        let end = demo.machine().memory.end();
        let mut bytes = vec![0; end.get() as usize];
        demo.read_lossy(PhysAddr::ZERO, &mut bytes).expect("the demo image");
        let linux = Linux::attach(&demo).expect("the demo image is Linux");
        let space = linux.kernel_space();
        let mut places = vec![linux.kernel().root.page().get()];
        let names = ["kallsyms_token_index", "kallsyms_names", "kallsyms_offsets", "kallsyms_markers", "__start_BTF", "init_task"];
        let more = ["modules", "prb", "linux_banner", "init_top_pgt", "level2_kernel_pgt", "btf_modules"];
        let symbols = names.iter().chain(&more).filter_map(|name| linux.symbols().address(name).ok());
        let tasks = linux.processes().filter_map(|task| Some(task.ok()?.address()));
        let spaces = linux.processes().filter_map(|task| task.ok()?.mm().ok()?);
        let modules = linux.modules().filter_map(|module| Some(module.ok()?.address()));
        places.extend(symbols.chain(tasks).chain(spaces).chain(modules).filter_map(|at| Some(space.translate(at).ok()?.at.get())));
        places.extend(linux.processes().filter_map(|task| Some(task.ok()?.page_table().ok()??.page().get())));
        Original { bytes: Mutex::new(Arc::new(bytes)), places }
    })
}

/// Patches of 1 byte place, 2 bytes offset, 1 byte length, and the bytes. The place is one of [`Original::places`], or any page for 255.
pub fn attach(data: &[u8]) {
    let original = original();
    let mut shared = original.bytes.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = Arc::get_mut(&mut shared).expect("no machine is left over it");
    let mut undo: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut rest = data;
    while let Some(([place, low, high, len], tail)) = head::<4>(rest) {
        let offset = u64::from(u16::from_le_bytes([low, high]));
        let at = match place {
            255 => offset * PAGE_SIZE,
            place => original.places[usize::from(place) % original.places.len()] + offset % 0x4000,
        } as usize;
        let (patch, tail) = tail.split_at(tail.len().min(usize::from(len)));
        rest = tail;
        if let Some(target) = bytes.get_mut(at..at + patch.len()) {
            undo.push((at, target.to_vec()));
            target.copy_from_slice(patch);
        }
    }
    look_at_everything(&Vmi::new(Patched::new(Arc::clone(&shared))));
    let bytes = Arc::get_mut(&mut shared).expect("the machine is gone");
    for (at, old) in undo.into_iter().rev() {
        bytes[at..at + old.len()].copy_from_slice(&old);
    }
}

fn look_at_everything(vmi: &Vmi<Patched>) {
    let Ok(linux) = Linux::attach(vmi) else { return };
    let mut areas = 0;
    for task in linux.processes() {
        let Ok(task) = task else { continue };
        let _ = (task.pid(), task.parent_pid(), task.name(), task.state(), task.uid(), task.start_time());
        let _ = (task.command_line(), task.environment(), task.executable());
        areas += task.memory_areas().count();
    }
    assert!(areas < 50_000_000);
    let _ = linux.threads().count();
    let _ = Guest::modules(&linux).count();
    let _ = Guest::kernel_log(&linux).count();
    let _ = linux.symbols().len();
    let _ = linux.boot_time();
}
