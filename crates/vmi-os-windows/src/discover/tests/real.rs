//! Real Windows bytes: a kernel triage dump of Windows 10 2004 and the symbol file of exactly that kernel, if `VMI_SHARED_DATA` names the directory that has them.

use vmi_core::{Isf, Memory};
use vmi_driver_file::ImageDriver;

use super::*;

const DUMP: &str = "windows/triage_x64.dmp";
const SYMBOLS: &str = "windows/isf/5278AFF86C341677D7D7835C85B7B844-1.json.xz";

/// The dump and the symbol file; `None`, and a line that says so, without them.
fn real() -> Option<(Vmi<ImageDriver>, Arc<Isf>)> {
    let Some(data) = std::env::var_os("VMI_SHARED_DATA").map(std::path::PathBuf::from) else {
        println!("skipped: VMI_SHARED_DATA is not set, so there is no real dump");
        return None;
    };
    let (dump, symbols) = (data.join(DUMP), data.join(SYMBOLS));
    if !dump.exists() || !symbols.exists() {
        println!("skipped: {} or {} does not exist", dump.display(), symbols.display());
        return None;
    }
    Some((Vmi::new(ImageDriver::open(dump).unwrap()), Arc::new(Isf::open(symbols).unwrap())))
}

const BASE: u64 = 0xffff_f804_7ba0_0000;
const SYSTEM: u64 = 0xffff_c08b_dce9_4180;

/// What the dump's header, `pefile` and `volatility3` say of it (none of them this crate).
fn check_real(kernel: &Kernel) {
    assert_eq!(kernel.base.get(), BASE);
    assert_eq!(kernel.size, 0x104_6000);
    assert_eq!(kernel.root.get(), 0x1a_d000);
    assert_eq!(kernel.build, Some(19041));
    let at = |name| kernel.symbols.address(name).unwrap().get();
    assert_eq!(at("PsLoadedModuleList"), 0xffff_f804_7c62_a390);
    assert_eq!(at("PsActiveProcessHead"), 0xffff_f804_7c61_e200);
    assert_eq!(at("KdDebuggerDataBlock"), 0xffff_f804_7c60_0b20);
}

#[test]
fn real_windows_bytes_with_the_symbol_file() {
    let Some((vmi, isf)) = real() else { return };
    let options = Options { symbols: Some(Arc::new(isf.symbols(0))), types: Some(isf), ..Options::default() };
    let kernel = find_with(&vmi, &options).unwrap();
    check_real(&kernel);
    println!("{:#?}", kernel.remarks);
    assert!(kernel.symbols.len() > 30_000);
    let space = vmi.address_space(kernel.root, kernel.mode);
    let first = space.read_pointer(kernel.symbols.address("PsActiveProcessHead").unwrap()).unwrap();
    assert_eq!(first.get(), SYSTEM + 0x448);
}

#[test]
fn real_windows_bytes_without_any_file() {
    let Some((vmi, _)) = real() else { return };
    let kernel = find(&vmi).unwrap();
    check_real(&kernel);
    println!("{}\n{:#?}", kernel.types.origin(), kernel.remarks);
    let field = |member| kernel.types.field("_EPROCESS", member).unwrap().offset;
    assert_eq!((field("UniqueProcessId"), field("ActiveProcessLinks"), field("ImageFileName")), (0x440, 0x448, 0x5a8));
}

/// The decoded debugger data names variables where the symbol file of this kernel has them, and offsets that its types have.
#[test]
fn real_windows_bytes_of_the_debugger_data() {
    let Some((vmi, isf)) = real() else { return };
    let dump = dump_header::note(&vmi).unwrap();
    let space = vmi.address_space(dump.directory_table_base, PagingMode::Level4);
    let mut bytes = vec![0; 0x380];
    space.read_into(dump.debugger_data.unwrap(), &mut bytes).unwrap();
    let data = DebuggerData::parse(&bytes).unwrap();
    assert_eq!(data.size(), 0x380);
    assert_eq!(data.kernel_base(), Some(VirtAddr::new(BASE)));
    let symbols = isf.symbols(BASE);
    let mut compared = 0;
    for (name, at) in data.variables() {
        match symbols.find(name) {
            Some(symbol) => assert_eq!(symbol.address, at, "{name}"),
            None => panic!(
                "{name} at {at} is not in the symbol file: {:?}",
                symbols.at(at).map(|symbol| symbol.name).collect::<Vec<_>>()
            ),
        }
        compared += 1;
    }
    assert!(compared > 20, "{compared}");
    let types: &dyn TypeSource = &*isf;
    let members: Vec<_> = data.members().collect();
    assert!(members.len() > 10);
    for (structure, member, offset) in members {
        assert_eq!(types.field(structure, member).map(|field| field.offset).ok(), Some(offset), "{structure}.{member}");
    }
    for (structure, size) in data.sizes() {
        assert_eq!(types.structure(structure).unwrap().size, size, "{structure}");
    }
}

#[test]
fn scratch() {
    let Some((vmi, isf)) = real() else { return };
    let dump = dump_header::note(&vmi).unwrap();
    println!("{:#x?}", dump.triage);
    let space = vmi.address_space(dump.directory_table_base, PagingMode::Level4);
    let mut page = vec![0; 0xa40];
    let gaps = space.read_lossy(VirtAddr::new(SYSTEM), &mut page).unwrap();
    println!("gaps {gaps:x?}");
    let symbols = isf.symbols(BASE);
    println!("{:x?}", symbols.at(VirtAddr::new(0xfffff8047c640798)).map(|s| s.name.to_owned()).collect::<Vec<_>>());
    println!("{:x?}", symbols.nearest(VirtAddr::new(0xfffff8047c640798)).map(|s| (s.0.name.to_owned(), s.1)));
}
