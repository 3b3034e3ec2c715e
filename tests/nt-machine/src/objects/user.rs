//! The user half of a process: PEB, process parameters, environment, the loader's lists, headers of mapped images; for 32-bit processes on 64-bit systems all
//! of it twice.
//!
//! Structures: `_PEB`, `_RTL_USER_PROCESS_PARAMETERS`, `_PEB_LDR_DATA`, `_LDR_DATA_TABLE_ENTRY` in the public symbols and, in part, in Microsoft's documentation
//! of `winternl.h`. Their 32-bit forms have not changed in the members that are written here since Windows XP.

use super::ground::{Ground, Writing, utf16};
use super::spec::{Contents, InLists, Module};

/// Where the members are, in one width.
#[derive(Clone, Copy, Debug)]
struct UserLayout {
    pointer: u64,
    peb_image: u64,
    peb_loader: u64,
    peb_parameters: u64,
    peb_heap: u64,
    parameters_size: u64,
    directory: u64,
    image_path: u64,
    command_line: u64,
    environment: u64,
    loader_size: u64,
    lists: u64,
    entry_size: u64,
    base: u64,
    entry_point: u64,
    image_size: u64,
    full_name: u64,
    base_name: u64,
    flags: u64,
    timestamp: u64,
}

const X86: UserLayout = UserLayout {
    pointer: 4,
    peb_image: 0x8,
    peb_loader: 0xC,
    peb_parameters: 0x10,
    peb_heap: 0x18,
    parameters_size: 0x290,
    directory: 0x24,
    image_path: 0x38,
    command_line: 0x40,
    environment: 0x48,
    loader_size: 0x30,
    lists: 0xC,
    entry_size: 0x100,
    base: 0x18,
    entry_point: 0x1C,
    image_size: 0x20,
    full_name: 0x24,
    base_name: 0x2C,
    flags: 0x34,
    timestamp: 0x44,
};

/// The width of the kernel, with the offsets of its build.
fn native(ground: &impl Ground) -> UserLayout {
    let loader = "_LDR_DATA_TABLE_ENTRY";
    let parameters = "_RTL_USER_PROCESS_PARAMETERS";
    UserLayout {
        pointer: ground.pointer(),
        peb_image: ground.at("_PEB", "ImageBaseAddress"),
        peb_loader: ground.at("_PEB", "Ldr"),
        peb_parameters: ground.at("_PEB", "ProcessParameters"),
        peb_heap: ground.at("_PEB", "ProcessHeap"),
        parameters_size: ground.size_of(parameters),
        directory: ground.at(parameters, "CurrentDirectory"),
        image_path: ground.at(parameters, "ImagePathName"),
        command_line: ground.at(parameters, "CommandLine"),
        environment: ground.at(parameters, "Environment"),
        loader_size: ground.size_of("_PEB_LDR_DATA"),
        lists: ground.at("_PEB_LDR_DATA", "InLoadOrderModuleList"),
        entry_size: ground.size_of(loader),
        base: ground.at(loader, "DllBase"),
        entry_point: ground.at(loader, "EntryPoint"),
        image_size: ground.at(loader, "SizeOfImage"),
        full_name: ground.at(loader, "FullDllName"),
        base_name: ground.at(loader, "BaseDllName"),
        flags: ground.at(loader, "Flags"),
        timestamp: ground.at(loader, "TimeDateStamp"),
    }
}

/// User memory that is filled from one end.
struct Heap {
    root: u64,
    next: u64,
}

impl Heap {
    fn take(&mut self, size: u64) -> u64 {
        let at = self.next;
        self.next = (at + size).next_multiple_of(16);
        at
    }
}

fn user_string(ground: &mut impl Ground, heap: &mut Heap, at: u64, text: &str, pointer: u64) {
    let bytes = utf16(text);
    let buffer = heap.take(bytes.len() as u64 + 2);
    ground.write_user(heap.root, buffer, &bytes);
    ground.put_user(heap.root, buffer + bytes.len() as u64, 0, 2);
    ground.put_user(heap.root, at, bytes.len() as u64, 2);
    ground.put_user(heap.root, at + 2, bytes.len() as u64 + 2, 2);
    ground.put_user(heap.root, at + pointer, buffer, pointer);
}

/// Fills the PEB at `peb`: `wide` says whether in the kernel's own width or, for a 32-bit process of a 64-bit system, in 32 bits. What the PEB leads to
/// goes to memory from `heap` on; gives the address behind it.
pub fn fill_peb(ground: &mut impl Ground, root: u64, peb: u64, wide: bool, heap: u64, contents: &mut Contents) -> u64 {
    let layout = if wide { native(ground) } else { X86 };
    let pointer = layout.pointer;
    let mut heap = Heap { root, next: heap };
    let version = ground.version();
    if !wide {
        ground.put_user(root, peb + 0xA4, u64::from(version.0), 4);
        ground.put_user(root, peb + 0xA8, u64::from(version.1), 4);
        ground.put_user(root, peb + 0xAC, u64::from(ground.build_number()), 2);
    }
    let executable = contents.modules.iter().find(|module| module.lists == InLists::EXECUTABLE).map_or(0, |module| module.base);
    ground.put_user(root, peb + layout.peb_image, executable, pointer);
    ground.put_user(root, peb + layout.peb_heap, heap.next & !0xFFFF, pointer);

    let parameters = heap.take(layout.parameters_size);
    ground.put_user(root, peb + layout.peb_parameters, parameters, pointer);
    for (offset, value) in [(0, layout.parameters_size + 0x400), (4, layout.parameters_size + 0x400), (8, 1)] {
        ground.put_user(root, parameters + offset, value, 4);
    }
    user_string(ground, &mut heap, parameters + layout.directory, &contents.directory, pointer);
    user_string(ground, &mut heap, parameters + layout.image_path, &contents.image_path, pointer);
    user_string(ground, &mut heap, parameters + layout.command_line, &contents.command_line, pointer);
    let block: String =
        contents.environment.iter().map(|(name, value)| format!("{name}={value}\0")).chain(["\0".to_owned()]).collect();
    let bytes = utf16(&block);
    heap.next = heap.next.next_multiple_of(0x1000);
    let environment = heap.take(bytes.len() as u64);
    ground.write_user(root, environment, &bytes);
    ground.put_user(root, parameters + layout.environment, environment, pointer);
    if wide && let Some(size) = ground.find("_RTL_USER_PROCESS_PARAMETERS", "EnvironmentSize") {
        ground.put_user(root, parameters + size, bytes.len() as u64, pointer);
    }

    let loader = heap.take(layout.loader_size);
    ground.put_user(root, peb + layout.peb_loader, loader, pointer);
    ground.put_user(root, loader, layout.loader_size, 4);
    ground.put_user(root, loader + 4, 1, 1);
    let mut modules: Vec<Module> = contents.modules.iter().filter(|module| lists_of(module, wide)).cloned().collect();
    for module in &mut modules {
        let entry = heap.take(layout.entry_size);
        module.entry = entry;
        ground.put_user(root, entry + layout.base, module.base, pointer);
        ground.put_user(root, entry + layout.entry_point, module.entry_point, pointer);
        ground.put_user(root, entry + layout.image_size, module.size, 4);
        ground.put_user(root, entry + layout.flags, 0x0000_A2C4, 4);
        ground.put_user(root, entry + layout.timestamp, u64::from(module.timestamp), 4);
        user_string(ground, &mut heap, entry + layout.full_name, &module.path, pointer);
        user_string(ground, &mut heap, entry + layout.base_name, &module.name, pointer);
        // The truth has the executable's entry of the kernel's own width.
        let places =
            contents.modules.iter_mut().filter(|other| other.base == module.base && (wide || other.lists != InLists::EXECUTABLE));
        places.for_each(|other| other.entry = entry);
    }
    let in_list: [fn(&Module) -> bool; 3] =
        [|module| module.lists.load, |module| module.lists.memory, |module| module.lists.initialization];
    for (nth, in_list) in (0..).zip(in_list) {
        let link = 2 * pointer * nth;
        let head = loader + layout.lists + link;
        let mut chain = vec![head];
        chain.extend(modules.iter().filter(|module| in_list(module)).map(|module| module.entry + link));
        for (place, at) in chain.iter().enumerate() {
            let next = chain[(place + 1) % chain.len()];
            let previous = chain[(place + chain.len() - 1) % chain.len()];
            ground.put_user(root, *at, next, pointer);
            ground.put_user(root, *at + pointer, previous, pointer);
        }
    }
    heap.next.next_multiple_of(0x1000)
}

/// Whether a module is in the lists of this width. The executable of a 32-bit process is in both.
fn lists_of(module: &Module, wide: bool) -> bool {
    module.wow64 != wide || module.lists == InLists::EXECUTABLE
}

/// Puts the header of a PE image at the base of a module. Format: Microsoft's "PE Format".
pub fn write_image_header(ground: &mut impl Ground, root: u64, module: &Module, is_64_bit: bool) {
    let mut bytes = vec![0; 0x400];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"MZ\x90\0\x03\0\0\0\x04\0\0\0\xFF\xFF");
    put(0x3C, &0x80u32.to_le_bytes());
    put(0x80, b"PE\0\0");
    put(0x84, &(if is_64_bit { 0x8664u16 } else { 0x14C }).to_le_bytes());
    put(0x86, &2u16.to_le_bytes());
    put(0x88, &module.timestamp.to_le_bytes());
    let optional: u16 = if is_64_bit { 0xF0 } else { 0xE0 };
    put(0x94, &optional.to_le_bytes());
    put(0x96, &(if module.name.ends_with(".exe") { 0x22u16 } else { 0x2022 }).to_le_bytes());
    put(0x98, &(if is_64_bit { 0x20Bu16 } else { 0x10B }).to_le_bytes());
    put(0x9C, &0x1000u32.to_le_bytes());
    put(0xA8, &((module.entry_point - module.base) as u32).to_le_bytes());
    put(0xAC, &0x1000u32.to_le_bytes());
    if is_64_bit {
        put(0xB0, &module.base.to_le_bytes());
    } else {
        put(0xB4, &(module.base as u32).to_le_bytes());
    }
    put(0xB8, &0x1000u32.to_le_bytes());
    put(0xBC, &0x200u32.to_le_bytes());
    for (at, value) in [(0xC0, 10u16), (0xC8, 10), (0xDC, 3)] {
        put(at, &value.to_le_bytes());
    }
    put(0xD0, &(module.size as u32).to_le_bytes());
    put(0xD4, &0x400u32.to_le_bytes());
    put(if is_64_bit { 0x104 } else { 0xF4 }, &16u32.to_le_bytes());
    let sections = 0x98 + usize::from(optional);
    for (nth, (name, start, flags)) in
        [(b".text\0\0\0", 0x1000u32, 0x6000_0020u32), (b".data\0\0\0", 0x2000, 0xC000_0040)].into_iter().enumerate()
    {
        let at = sections + nth * 40;
        put(at, name);
        let size = if nth == 0 { 0x1000 } else { (module.size as u32).saturating_sub(0x2000).max(0x1000) };
        for (field, value) in [(8, size), (12, start), (16, 0x1000), (20, start), (36, flags)] {
            put(at + field, &value.to_le_bytes());
        }
    }
    let page = ground.user_page(root, module.base, false, false);
    ground.write_physical(page, &bytes);
}
