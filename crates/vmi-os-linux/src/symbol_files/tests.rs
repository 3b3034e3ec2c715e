use super::*;

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn files_are_told_apart_by_content() {
    let folder = tempfile::tempdir().unwrap();
    let map = b"0000000000001000 A offset\nffffffff81000000 T _text\nffffffffc0000000 t init\t[loop]\n";
    let file = open(write(folder.path(), "a", map)).unwrap().slide(0x20_0000);
    let symbols = file.symbols.unwrap();
    assert_eq!(symbols.address("_text").unwrap(), VirtAddr::new(0xffff_ffff_8120_0000));
    assert_eq!(symbols.address("offset").unwrap(), VirtAddr::new(0x1000));
    assert_eq!(symbols.find("init").unwrap().module, Some("loop"));
    assert!(file.types.is_none());

    let isf = br#" {"metadata": {"format": "6.2.0", "linux": {}}, "base_types": {}, "user_types": {"s": {"kind": "struct", "size": 4, "fields": {}}},
        "enums": {}, "symbols": {"a": {"address": 4294967296}}}"#;
    let file = open(write(folder.path(), "b", isf)).unwrap();
    assert_eq!(file.types.unwrap().structure("s").unwrap().size, 4);
    assert_eq!(file.symbols.unwrap().address("a").unwrap(), VirtAddr::new(1 << 32));

    let error = |name, bytes: &[u8]| open(write(folder.path(), name, bytes)).unwrap_err();
    assert!(matches!(error("c", b"\x7fELF"), SymbolFileError::Dwarf(DwarfError::Elf(_))));
    assert!(matches!(error("d", b"\x9f\xeb\x01\x00"), SymbolFileError::Btf(BtfError::Short { .. })));
    assert!(matches!(error("e", b"\xfd7zXZ\0"), SymbolFileError::Isf(IsfError::Xz(_))));
    assert!(matches!(error("f", b"{}"), SymbolFileError::Isf(IsfError::Json(_))));
    assert!(matches!(error("g", b"ffffffff81000000 T"), SymbolFileError::SystemMap(SystemMapError::Line { line: 1, .. })));
    for (name, bytes) in [("h", &b""[..]), ("i", b"hello"), ("j", &[0; 4096])] {
        assert!(matches!(error(name, bytes), SymbolFileError::Unknown));
    }
    assert!(matches!(open(folder.path().join("absent")), Err(SymbolFileError::Io { .. })));
}

#[test]
fn a_vmlinux_tells_symbols_types_and_banner() {
    let folder = tempfile::tempdir().unwrap();
    let text = r#"
        const char linux_banner[] = "Linux version 9.9.9 (hand)\n";
        struct task_struct { int pid; char comm[16]; } init_task = { 1 };
        static int counter;
        void start_kernel(void) { counter++; }
    "#;
    let source = write(folder.path(), "kernel.c", text.as_bytes());
    let output = folder.path().join("vmlinux");
    let mut gcc = std::process::Command::new("gcc");
    gcc.args(["-g", "-nostdlib", "-static", "-fno-pic", "-no-pie", "-Wl,-Ttext=0xffffffff81000000,-e,start_kernel"]);
    gcc.arg("-mcmodel=kernel").arg(source).arg("-o").arg(&output);
    if !gcc.output().is_ok_and(|output| output.status.success()) {
        println!("skipped: no gcc that links at a kernel's addresses");
        return;
    }
    let file = open(output).unwrap();
    assert_eq!(file.banner.as_deref(), Some("Linux version 9.9.9 (hand)"));
    assert_eq!(file.types.unwrap().field("task_struct", "comm").unwrap().offset, 4);
    let symbols = file.symbols.unwrap();
    let kind = |name| symbols.find(name).unwrap().kind;
    assert_eq!([kind("start_kernel"), kind("init_task"), kind("linux_banner"), kind("counter")], *b"TDRb");
    assert!(symbols.address("start_kernel").unwrap() >= VirtAddr::new(0xffff_ffff_8100_0000));
}
