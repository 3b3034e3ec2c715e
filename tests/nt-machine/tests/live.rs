//! The live machine, synthetic NT layout: QEMU runs it, and its account of itself agrees with its list.

use std::path::PathBuf;
use std::{env, fs, process, thread, time};

use nt_machine::{Backing, Build, LiveMachine, LiveOptions};

struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn start(build: &str, options: &LiveOptions) -> Option<(LiveMachine, nt_machine::Running, Directory)> {
    let directory = Directory(env::temp_dir().join(format!("nt-machine-live-{}-{build}-{}", process::id(), options.kva_shadow)));
    fs::create_dir_all(&directory.0).unwrap();
    let live = match LiveMachine::new(Build::named(build).unwrap(), options) {
        Ok(live) => live,
        Err(why) if why.contains("No such file") => {
            println!("skipped: {why}");
            return None;
        }
        Err(why) => panic!("{why}"),
    };
    match live.start(&directory.0, Backing::SharedFile, &[]) {
        Ok(running) => Some((live, running, directory)),
        Err(why) if why.contains("No such file") => {
            println!("skipped: {why}");
            None
        }
        Err(why) => panic!("{why}"),
    }
}

#[test]
fn the_account_agrees_with_the_list() {
    for build in ["win10_x64_19041", "win7_sp1_x64", "win11_x64_22000"] {
        let Some((live, mut running, directory)) = start(build, &LiveOptions::default()) else { return };
        let machine = &live.machine;
        let links = machine.offset("_EPROCESS", "ActiveProcessLinks").unwrap();
        let name = machine.offset("_EPROCESS", "ImageFileName").unwrap();
        let head = machine.symbol_address("PsActiveProcessHead");
        let mut last = 0;
        for _ in 0..5 {
            let account = running.pause().unwrap();
            let memory = fs::read(directory.0.join("memory")).unwrap();
            // The kernel maps nothing anew: its page tables are those that the builder made.
            let at = |va: u64, len: usize| {
                let pa = machine.translate(machine.system_root(), va).unwrap() as usize;
                memory[pa..pa + len].to_vec()
            };
            let pointer = |va: u64| u64::from_le_bytes(at(va, 8).try_into().unwrap());
            let mut found = Vec::new();
            let mut next = pointer(head);
            while next != head {
                let text = at(next - links + name, 15);
                found.push((next - links, String::from_utf8(text.split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap()));
                next = pointer(next);
            }
            let told: Vec<_> = account.processes.iter().map(|process| (process.eprocess, process.name.clone())).collect();
            assert_eq!(found, told);
            assert!(account.generation > last && account.ended > 0);
            last = account.generation;
            running.resume().unwrap();
            thread::sleep(time::Duration::from_millis(100));
        }
        println!("{build}: generation {last}");
    }
}

#[test]
fn user_mode_with_shadow_tables() {
    let options = LiveOptions { kva_shadow: true, user_one_in: 1, ..LiveOptions::default() };
    let Some((live, mut running, _directory)) = start("win10_x64_17763", &options) else { return };
    let shadows: Vec<u64> = live.machine.processes().map(|(_, process)| process.user_dtb).filter(|shadow| *shadow != 0).collect();
    assert!(shadows.len() > 32);
    let (mut samples, mut seen, mut entering) = (0, 0, 0);
    // On a busy machine the guest spends most of its time in the handler of its timer: as many samples as it takes.
    let end = time::Instant::now() + time::Duration::from_secs(120);
    while (samples < 40 || seen <= 10) && time::Instant::now() < end {
        samples += 1;
        running.pause().unwrap();
        let arguments = serde_json::json!({"command-line": "info registers"});
        let registers = running.command("human-monitor-command", arguments).unwrap();
        let registers = registers.as_str().unwrap();
        let (_, cr3) = registers.split_once("CR3=").unwrap();
        let cr3 = u64::from_str_radix(&cr3[..16], 16).unwrap();
        if registers.contains("CPL=3") {
            assert!(shadows.contains(&cr3), "{cr3:#x}");
            seen += 1;
        } else {
            // The first instructions of the kernel still run on the shadow.
            entering += usize::from(shadows.contains(&cr3));
        }
        running.resume().unwrap();
        thread::sleep(time::Duration::from_millis(17));
    }
    assert!(seen > 10, "user mode was seen {seen} times in {samples} samples");
    assert!(entering * 4 < samples, "the kernel was seen on shadow tables {entering} times in {samples} samples");
    println!("user mode: {seen} of {samples}");
}
