//! Real Windows bytes: a triage dump of Windows 10 19041 with the symbol file of exactly this kernel. `VMI_SHARED_DATA` names the directory with
//! `windows/triage_x64.dmp` and `windows/isf`. Expected values were read from the file's bytes by hand.

use std::path::PathBuf;
use std::sync::Arc;

use vmi_arch_x86::PagingMode;
use vmi_core::{Driver, Guest, Isf, Memory, Note, VcpuId, VirtAddr, Vmi, WindowsDump};
use vmi_driver_file::ImageDriver;
use vmi_os_windows::{Kernel, ThreadState, Windows};

const BASE: u64 = 0xffff_f804_7ba0_0000;
const SYSTEM: u64 = 0xffff_c08b_dce9_4180;

fn data() -> Option<PathBuf> {
    let found = std::env::var_os("VMI_SHARED_DATA").map(|data| PathBuf::from(data).join("windows"));
    let found = found.filter(|path| path.join("triage_x64.dmp").exists() && path.join("isf").exists());
    if found.is_none() {
        eprintln!("skipped: VMI_SHARED_DATA names no directory with windows/triage_x64.dmp and windows/isf");
    }
    found
}

fn note(vmi: &Vmi<ImageDriver>) -> WindowsDump {
    let note = vmi.machine().notes.iter().find_map(|note| match note {
        Note::WindowsDump(note) => Some((**note).clone()),
        _ => None,
    });
    note.unwrap()
}

fn open() -> Option<(Vmi<ImageDriver>, Kernel)> {
    let data = data()?;
    let vmi = Vmi::new(ImageDriver::open(data.join("triage_x64.dmp")).unwrap());
    let isf = Isf::open(data.join("isf/5278AFF86C341677D7D7835C85B7B844-1.json.xz")).unwrap();
    let note = note(&vmi);
    let kernel = Kernel {
        mode: PagingMode::Level4,
        root: note.directory_table_base,
        base: VirtAddr::new(BASE),
        size: 0x104_6000,
        pdb: None,
        build: Some(note.build),
        symbols: Arc::new(isf.symbols(BASE)),
        types: Arc::new(isf),
        remarks: Vec::new(),
    };
    Some((vmi, kernel))
}

#[test]
fn real_windows_bytes_the_process_system() {
    let Some((vmi, kernel)) = open() else { return };
    let windows = Windows::with_kernel(&vmi, kernel).unwrap();
    let mut processes = windows.processes();
    let system = processes.next().unwrap().unwrap();
    assert_eq!(system.address(), VirtAddr::new(SYSTEM));
    assert_eq!((system.pid().unwrap(), system.parent_pid().unwrap(), system.name().unwrap().as_str()), (4, 0, "System"));
    assert_eq!(system.page_table().unwrap(), note(&vmi).directory_table_base);
    assert_eq!(system.thread_count().unwrap(), 0x93);
    assert!(system.is_kernel_process().unwrap() && !system.has_exited().unwrap());
    assert_eq!(system.exit_status().unwrap(), None);
    assert_eq!(system.peb_address().unwrap(), None);
    println!("{:?} {:?} {:?}", system.create_time(), system.protection(), system.image_path());
    println!("{:?} {:?}", system.session(), system.user_page_table());
    println!("{}", windows.version());
    for row in Guest::processes(&windows) {
        println!("{row:?}");
    }
    for row in system.threads() {
        println!("{row:?}");
    }
    println!("{:?}", windows.process_on(VcpuId(0)));
    println!("{:?}", windows.thread_on(VcpuId(0)));
    println!("{:?}", windows.kernel_modules().map(|m| m.map(|m| m.name())).collect::<Vec<_>>());
    println!("{:?}", system.vads().collect::<Vec<_>>());
    println!("{:x?}", vmi.driver().vcpus().unwrap().registers(VcpuId(0)));
}
