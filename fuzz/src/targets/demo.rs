//! The demo image with places in it changed.

use std::sync::OnceLock;

use vmi_core::{Memory, PAGE_SIZE, PhysAddr, VirtAddr, Vmi};
use vmi_driver_file::ImageDriver;
use vmi_os_linux::{Kernel, Linux};

use super::head;
use super::patched::{Patched, PatchedMemory};

const IMAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/debian-6.12.raw.zst");

/// Symbols of what is read first, and of what a list or ring begins with.
const SYMBOLS: [&str; 16] = [
    "kallsyms_token_index",
    "kallsyms_token_table",
    "kallsyms_names",
    "kallsyms_markers",
    "kallsyms_offsets",
    "__start_BTF",
    "linux_banner",
    "init_task",
    "init_top_pgt",
    "level2_kernel_pgt",
    "modules",
    "btf_modules",
    "bpf_kallsyms",
    "printk_rb_static",
    "_printk_rb_static_descs",
    "_printk_rb_static_infos",
];

/// Pointers that are followed: from each object of a structure to what a member of it names.
const POINTERS: [(&str, &str); 8] = [
    ("task_struct", "real_cred"),
    ("task_struct", "signal"),
    ("mm_struct", "mm_mt.ma_root"),
    ("mm_struct", "pgd"),
    ("mm_struct", "exe_file"),
    ("module", "kallsyms"),
    ("mod_kallsyms", "symtab"),
    ("mod_kallsyms", "strtab"),
];

/// The image in memory, and where in it a change matters.
struct Original {
    memory: PatchedMemory,
    kernel: Kernel,
    places: Vec<PhysAddr>,
}

fn original() -> &'static Original {
    static ORIGINAL: OnceLock<Original> = OnceLock::new();
    ORIGINAL.get_or_init(|| {
        let demo = Vmi::new(ImageDriver::open(IMAGE).expect("the demo image"));
        let mut bytes = vec![0; demo.machine().memory.end().get() as usize];
        demo.read_lossy(PhysAddr::ZERO, &mut bytes).expect("the demo image");
        let linux = Linux::attach(&demo).expect("the demo image is Linux");
        Original { memory: PatchedMemory::new([(0, bytes)]), places: places(&linux), kernel: linux.kernel().clone() }
    })
}

/// The objects of the kernel, and what they point at.
fn places(linux: &Linux<'_, ImageDriver>) -> Vec<PhysAddr> {
    let space = linux.kernel_space();
    let offset = |structure: &str, member: &str| linux.types().field(structure, member).expect("a member").offset;
    let follow = |at: &VirtAddr, (structure, member): (&str, &str)| {
        let target = space.read_pointer(at.checked_add(offset(structure, member))?).ok()?;
        // The maple tree keeps the kind of a node in the low bits.
        Some(VirtAddr::new(target.get() & !0xff)).filter(|target| !target.is_null())
    };
    let tasks: Vec<_> = linux.processes().filter_map(|task| Some(task.ok()?.address())).collect();
    let spaces: Vec<_> = linux.processes().filter_map(|task| task.ok()?.mm().ok()?).collect();
    let modules: Vec<_> = linux.modules().filter_map(|module| Some(module.ok()?.address())).collect();
    let tables: Vec<_> = modules.iter().filter_map(|module| follow(module, ("module", "kallsyms"))).collect();
    let objects = |structure: &str| match structure {
        "task_struct" => &tasks,
        "mm_struct" => &spaces,
        "module" => &modules,
        _ => &tables,
    };
    let symbols = SYMBOLS.iter().map(|name| linux.symbols().address(name).expect(name));
    let pointed = POINTERS.iter().flat_map(|&pair| objects(pair.0).iter().filter_map(move |at| follow(at, pair)));
    let all = symbols.chain(tasks.iter().copied()).chain(spaces.iter().copied()).chain(modules.iter().copied()).chain(pointed);
    all.filter_map(|at| Some(space.translate(at).ok()?.at)).collect()
}

/// Calls `look` with the machine that `script` makes of the demo image, and the kernel that it had before.
///
/// The script has patches of 2 bytes place, 2 bytes offset, 1 byte length, and the bytes. The place is the number of an object or table of
/// the kernel, or, with the highest bit set, of any page.
pub fn patched<T>(script: &[u8], look: impl FnOnce(&Vmi<Patched>, &Kernel) -> T) -> T {
    let original = original();
    let mut rest = script;
    let patches = std::iter::from_fn(|| {
        let ([place, place_high, offset, offset_high, len], tail) = head::<5>(rest)?;
        let (place, offset) = (u16::from_le_bytes([place, place_high]), u16::from_le_bytes([offset, offset_high]));
        let at = match place.checked_sub(0x8000) {
            Some(page) => u64::from(page) * PAGE_SIZE + u64::from(offset % 0x1000),
            None => original.places[usize::from(place) % original.places.len()].get() + u64::from(offset),
        };
        let (patch, tail) = tail.split_at(tail.len().min(usize::from(len)));
        rest = tail;
        Some((at, patch))
    });
    original.memory.with(patches, |vmi| look(vmi, &original.kernel))
}

/// The number of the place of a symbol.
#[cfg(test)]
pub fn place_of(name: &str) -> u16 {
    SYMBOLS.iter().position(|symbol| *symbol == name).expect("a symbol of the list") as u16
}
