//! Real Windows bytes: a triage dump of Windows 10 19041 with the symbol file of exactly this kernel. `VMI_SHARED_DATA` names the directory with
//! `windows/triage_x64.dmp` and `windows/isf`. Expected values were read from the file's bytes by hand.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use vmi_arch_x86::PagingMode;
use vmi_core::{Guest, Isf, Note, VcpuId, VirtAddr, Vmi, WindowsDump};
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
    assert_eq!(system.image_path().unwrap(), None);
    assert_eq!(system.session().unwrap(), None);
    // Signed by Windows as a part of the system, fully protected.
    assert_eq!(system.protection().unwrap().unwrap().to_string(), "PP WinSystem");
    assert_eq!(system.user_page_table().unwrap(), None);
    // 132583451020698648 units of 100 ns since 1601: 19 February 2021.
    let started = system.create_time().unwrap().unwrap().duration_since(UNIX_EPOCH).unwrap();
    assert_eq!((started.as_secs(), started.subsec_nanos()), (1_613_871_502, 69_864_800));
    assert!(windows.version().starts_with("Windows 10 19041 x64"), "{}", windows.version());
    // The next process is not in the dump: the row says so.
    let next = processes.next().unwrap().and_then(|process| process.pid());
    assert!(next.unwrap_err().is_absent());
}

#[test]
fn real_windows_bytes_the_thread_that_ran() {
    let Some((vmi, kernel)) = open() else { return };
    let windows = Windows::with_kernel(&vmi, kernel).unwrap();
    let thread = windows.thread_at(VirtAddr::new(0xffff_c08b_de9e_1640));
    assert_eq!((thread.pid().unwrap(), thread.tid().unwrap()), (4, 0x108));
    assert_eq!(thread.start_address().unwrap(), VirtAddr::new(0xffff_f804_7bc2_5870));
    assert_eq!(thread.state().unwrap(), ThreadState::Running);
    assert_eq!(thread.priority().unwrap(), 13);
    assert_eq!(thread.context_switches().unwrap(), 408);
    assert_eq!(thread.teb_address().unwrap(), None);
    assert_eq!(thread.process().unwrap().address(), VirtAddr::new(SYSTEM));
    assert_eq!(thread.attached_process().unwrap().address(), VirtAddr::new(SYSTEM));
    println!("{:?}", windows.process_on(VcpuId(0)));
}

#[test]
fn real_windows_bytes_the_drivers_of_the_dump() {
    let Some((vmi, kernel)) = open() else { return };
    let windows = Windows::with_kernel(&vmi, kernel).unwrap();
    let drivers = windows.dumped_drivers().unwrap();
    assert_eq!(drivers.len(), 151);
    assert_eq!((drivers[0].base, drivers[0].size), (VirtAddr::new(BASE), 0x104_6000));
    assert_eq!((drivers[0].path.as_str(), drivers[0].name()), (r"\SystemRoot\system32\ntoskrnl.exe", "ntoskrnl.exe"));
    assert!(drivers.iter().all(|driver| driver.size != 0 && driver.base.get() >> 47 == 0x1_ffff && driver.name().contains('.')));
    let rows: Vec<_> = Guest::modules(&windows).map(Result::unwrap).collect();
    assert_eq!(rows.len(), 151);
    let unloaded = windows.unloaded_drivers().unwrap();
    let unloaded: Vec<_> = unloaded.iter().map(|driver| (driver.name.as_str(), driver.start.get(), driver.end.get())).collect();
    assert_eq!(
        unloaded,
        [
            ("dam.sys", 0xffff_f804_87de_0000, 0xffff_f804_87df_c000),
            ("WdBoot.sys", 0xffff_f804_79d3_0000, 0xffff_f804_79d4_2000),
            ("hwpolicy.sys", 0xffff_f804_802c_0000, 0xffff_f804_802d_1000),
            ("mcupdate.dll", 0xffff_f804_793e_0000, 0xffff_f804_7940_9000),
        ]
    );
}
