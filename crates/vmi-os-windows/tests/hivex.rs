//! The registry's reader against hivex, an independent reader and writer of hive files (Debian: libhivex-bin). Tier: synthetic NT layout, second opinion.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use nt_machine::objects::hive_cells::{Cells, Key, List};
use vmi_os_windows::registry::{Data, Hive, HiveFile};

/// A hive that `nt-machine` writes, and hivex changes then by these commands of its shell; `None` where hivex is not installed.
fn changed(commands: &str) -> Option<Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hive");
    let many = (0..30).map(|nth| Key::new(&format!("key{nth:02}")).number("n", nth)).collect();
    let mut root =
        Key::new("ROOT").keys(List::Lh, vec![Key::new("Many").keys(List::Lh, many), Key::new("Software").text("Vendor", "Ada")]);
    let cells = Cells::new(&mut root);
    std::fs::write(&path, cells.file("hive", 0x01d0_0000_0000_0000)).unwrap();
    let shell =
        Command::new("hivexsh").arg("-w").arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut shell) = shell else {
        eprintln!("skipped: hivexsh is not installed (Debian: libhivex-bin)");
        return None;
    };
    shell.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    Some(std::fs::read(path).unwrap())
}

#[test]
fn what_hivex_writes_is_read() {
    let binary: Vec<u8> = (0..64u32).map(|nth| (nth * 7) as u8).collect();
    let hex: Vec<String> = binary.iter().map(|byte| format!("{byte:02x}")).collect();
    // Its shell writes a wrong number for `qword:` above 32 bits, so that one is written as bytes.
    let commands = format!(
        "cd Software\nadd Größe\ncd Größe\nsetval 6\n@\nstring:the default\nname\nexpandstring:%TEMP%\nnumber\ndword:0x12345678\nlong\nhex:11:88,77,66,55,44,33,22,11\n\
         list\nhex:7:61,00,00,00,62,00,00,00,00,00\nbytes\nhex:3:{}\ncd ..\nadd Gone\ncd Gone\ndel\ncd \\\nadd Last\ncommit\nquit\n",
        hex.join(",")
    );
    let Some(bytes) = changed(&commands) else { return };
    let hive = Hive::new(HiveFile::parse(&bytes).unwrap());
    let paths: BTreeSet<String> = hive.root().unwrap().tree().map(|found| found.unwrap().path).collect();
    assert_eq!(paths.len(), 1 + 1 + 30 + 1 + 1 + 1, "{paths:?}");
    let key = hive.key("software\\GRÖßE").unwrap();
    let data = |name: &str| key.value(name).unwrap().unwrap().data().unwrap();
    assert_eq!(data(""), Data::Text("the default".to_owned()));
    assert_eq!(data("NAME"), Data::Text("%TEMP%".to_owned()));
    assert_eq!(data("number"), Data::Number(0x1234_5678));
    assert_eq!(data("long"), Data::Number(0x1122_3344_5566_7788));
    assert_eq!(data("list"), Data::Texts(vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(data("bytes"), Data::Bytes(binary));
    assert_eq!(hive.key("Last").unwrap().subkey_count(), 0);
    assert_eq!(hive.key("Many\\key29").unwrap().value("n").unwrap().unwrap().data().unwrap(), Data::Number(29));
}
