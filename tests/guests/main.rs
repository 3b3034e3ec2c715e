//! Every lab guest, in every image format, against what the guest said of itself.
//!
//! `VMI_LAB_IMAGES` names the directory with one directory a guest, as `cargo xtask lab` makes it; without it nothing is tested, and
//! that is said. `VMI_LAB_ONLY` names one guest. The test prints a matrix: a row an image, a column a feature.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod truth;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use truth::{Area, Stat, Truth};
use vmi::linux::Linux;
use vmi::{AnyDriver, ErrorKind, Guest, Memory, PhysAddr, Result, SeenProcess, VirtAddr};

type Image<'v> = Linux<'v, AnyDriver>;

/// How one feature compared: what to say of it, or why it is not equal.
type Outcome = Result<String, String>;

type Compare = fn(&Image<'_>, &Truth) -> Outcome;

/// What is compared, with the heading of its column.
const FEATURES: [(&str, Compare); 17] = [
    ("processes", processes),
    ("views", views),
    ("parents", parents),
    ("states", states),
    ("users", users),
    ("started", start_times),
    ("threads", threads),
    ("cmdlines", command_lines),
    ("environs", environments),
    ("maps", memory_areas),
    ("pages", known_pages),
    ("modules", modules),
    ("symbols", symbols),
    ("log", kernel_log),
    ("boot", boot_time),
    ("modtypes", module_types),
    ("coreinfo", vmcoreinfo),
];

/// The formats that the lab takes.
const FORMATS: [&str; 3] = ["raw", "lime", "elf"];

#[test]
fn guests_are_what_they_said() {
    let Some(images) = std::env::var_os("VMI_LAB_IMAGES").map(PathBuf::from) else {
        println!("skipped: VMI_LAB_IMAGES names no directory with lab images");
        return;
    };
    let only = std::env::var("VMI_LAB_ONLY").ok();
    let mut guests: Vec<_> = std::fs::read_dir(&images).unwrap().map(|entry| entry.unwrap().path()).collect();
    // An image that is still being made has a name that begins with a dot.
    guests.retain(|guest| {
        guest.join("truth/tasks.stat").exists() && !guest.file_name().unwrap().as_encoded_bytes().starts_with(b".")
    });
    guests.retain(|guest| only.as_ref().is_none_or(|only| guest.ends_with(only)));
    guests.sort();
    assert!(!guests.is_empty(), "no guest in {}", images.display());
    let headings: Vec<_> = FEATURES.iter().map(|(name, _)| format!("{name:>9}")).collect();
    println!("{:<26}{}", "guest and format", headings.concat());
    let mut notes = String::new();
    let failures: usize = guests.iter().map(|guest| compare(guest, &mut notes)).sum();
    println!("\nnumber: so many compared and equal; ok: equal; -: not told by this kernel's types; DIFF: different\n{notes}");
    assert_eq!(failures, 0, "see above");
}

/// Prints a row of the matrix for each format, and returns how many features differ.
fn compare(guest: &Path, notes: &mut String) -> usize {
    let truth = Truth::new(guest.join("truth"));
    let name = guest.file_name().unwrap().display().to_string();
    let mut failures = 0;
    for format in FORMATS {
        let vmi = vmi::open(guest.join(format!("memory.{format}"))).unwrap();
        let mut row = format!("{:<26}", format!("{name} {format}"));
        let linux = match Linux::attach(&vmi) {
            Ok(linux) => linux,
            Err(error) => {
                println!("{row}no kernel");
                writeln!(notes, "{name} {format}: {error}").unwrap();
                failures += 1;
                continue;
            }
        };
        for (feature, compare) in FEATURES {
            let cell = match compare(&linux, &truth) {
                Ok(said) if said == UNTOLD => "-".to_owned(),
                Ok(said) => said.split(' ').next().filter(|word| word.parse::<u64>().is_ok()).unwrap_or("ok").to_owned(),
                Err(why) => {
                    failures += 1;
                    writeln!(notes, "{name} {format}: {feature}: {why}").unwrap();
                    "DIFF".to_owned()
                }
            };
            write!(row, "{cell:>9}").unwrap();
        }
        println!("{row}");
        if format == FORMATS[0] {
            linux.remarks().iter().for_each(|remark| writeln!(notes, "{name}: {remark}").unwrap());
        }
    }
    failures
}

/// The value, or that the kernel's types, inferred by shape, do not tell it: that is no failure.
fn told<T>(read: Result<T>) -> Result<Option<T>, String> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), ErrorKind::NoType { .. } | ErrorKind::NoSymbol { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

const UNTOLD: &str = "not told by this kernel's types";

fn equal<T: PartialEq + std::fmt::Debug>(ours: &BTreeMap<u32, T>, truth: &BTreeMap<u32, T>) -> Outcome {
    let mut why = String::new();
    let ids: BTreeSet<_> = ours.keys().chain(truth.keys()).collect();
    for id in ids {
        let (ours, truth) = (ours.get(id), truth.get(id));
        if ours != truth {
            write!(why, "\n    {id}: {ours:?}, in truth {truth:?}").unwrap();
        }
    }
    if why.is_empty() { Ok(format!("{} equal", truth.len())) } else { Err(why) }
}

fn is_worker(name: &str) -> bool {
    name.starts_with("kworker/")
}

/// The first threads of all processes. Kernel workers come and go, also while the image is taken: they are left out.
fn leaders(truth: &Truth) -> Vec<Stat> {
    truth.tasks().into_iter().filter(|task| task.tid == task.tgid && !is_worker(&task.name)).collect()
}

/// A field of each process but kernel workers; `None` if the types do not tell it.
fn each<T>(
    linux: &Image<'_>,
    field: impl Fn(&vmi::linux::Task<'_, '_, AnyDriver>) -> Result<T>,
) -> Result<Option<BTreeMap<u32, T>>, String> {
    let mut fields = BTreeMap::new();
    for task in linux.processes() {
        let task = task.map_err(|error| error.to_string())?;
        let (Ok(pid), Ok(name)) = (task.pid(), task.name()) else { return Err(format!("{task:?}")) };
        if is_worker(&name) {
            continue;
        }
        match told(field(&task))? {
            Some(value) => fields.insert(pid, value),
            None => return Ok(None),
        };
    }
    Ok(Some(fields))
}

/// Ids and names. Of kernel threads, /proc shows the whole name since 5.17, and the task's own has 15 bytes.
fn processes(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let name = |name: &str| name.bytes().take(15).map(char::from).collect::<String>();
    let wanted = leaders(truth).iter().map(|task| (task.tid, name(&task.name))).collect();
    let ours = each(linux, |task| task.name())?.unwrap();
    equal(&ours, &wanted)
}

/// Each view of the processes knows all of them, and the table of ids all threads.
fn views(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let mut threads = BTreeSet::new();
    for thread in linux.threads_by_id() {
        // Of every kernel, whether it describes itself or not.
        threads.insert(thread.and_then(|thread| thread.pid()).map_err(|error| error.to_string())?);
    }
    let wanted: BTreeSet<u32> = truth.tasks().iter().map(|task| task.tid).collect();
    if threads != wanted {
        return Err(format!("threads by id: {:?} differ", threads.symmetric_difference(&wanted)));
    }
    let survey = linux.survey_processes();
    if let Some(problem) = survey.problems.first() {
        return Err(format!("{problem:?}"));
    }
    let everywhere = |process: &SeenProcess| process.views.iter().all(|(_, known)| *known == Some(true));
    if let Some(process) = survey.processes.iter().find(|process| process.hidden || !everywhere(process)) {
        return Err(format!("{process:?}"));
    }
    let ours: BTreeSet<u32> = survey.processes.iter().map(|process| process.pid).collect();
    let wanted: BTreeSet<u32> = truth.tasks().iter().map(|task| task.tgid).collect();
    if ours != wanted {
        return Err(format!("processes: {:?} differ", ours.symmetric_difference(&wanted)));
    }
    Ok(format!("{} threads by id", threads.len()))
}

fn parents(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let wanted = leaders(truth).iter().map(|task| (task.tid, (task.parent, task.kernel))).collect();
    let ours = each(linux, |task| Ok((task.parent_pid()?, task.is_kernel_thread()?)))?;
    ours.map_or(Ok(UNTOLD.to_owned()), |ours| equal(&ours, &wanted))
}

/// Of init nothing is compared: it read its own state when it ran. Kernel threads that ran at one of the two times are left out.
fn states(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let Some(mut ours) = each(linux, |task| Ok(task.state()?.letter()))? else { return Ok(UNTOLD.to_owned()) };
    let mut wanted = BTreeMap::new();
    for task in leaders(truth) {
        let ran = ours.get(&task.tid) == Some(&'R') || task.state == 'R';
        if task.tid == 1 || task.kernel && ran {
            ours.remove(&task.tid);
        } else {
            wanted.insert(task.tid, task.state);
        }
    }
    equal(&ours, &wanted)
}

fn users(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let effective = |line: &String| line.split('\t').nth(1).unwrap().parse::<u32>().unwrap();
    let groups = truth.status("Gid");
    let pairs: BTreeMap<_, _> =
        truth.status("Uid").iter().map(|(pid, uids)| (*pid, (effective(uids), effective(&groups[pid])))).collect();
    let wanted = leaders(truth).iter().filter_map(|task| Some((task.tid, *pairs.get(&task.tid)?))).collect();
    let ours = each(linux, |task| Ok((task.uid()?, task.gid()?)))?;
    ours.map_or(Ok(UNTOLD.to_owned()), |ours| equal(&ours, &wanted))
}

fn start_times(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let wanted = leaders(truth).iter().map(|task| (task.tid, task.started)).collect();
    let ours = each(linux, |task| Ok(task.start_time()?.as_millis() as u64 / 10))?;
    ours.map_or(Ok(UNTOLD.to_owned()), |ours| equal(&ours, &wanted))
}

/// The threads of each process that is no kernel thread.
fn threads(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let mut wanted: BTreeMap<u32, BTreeSet<(u32, String)>> = BTreeMap::new();
    for task in truth.tasks().into_iter().filter(|task| !task.kernel) {
        wanted.entry(task.tgid).or_default().insert((task.tid, task.name));
    }
    let mut ours: BTreeMap<u32, BTreeSet<(u32, String)>> = BTreeMap::new();
    for thread in linux.threads() {
        let row = thread.and_then(|task| Ok((task.is_kernel_thread()?, task.tgid()?, task.pid()?, task.name()?)));
        match told(row)? {
            Some((false, tgid, tid, name)) => _ = ours.entry(tgid).or_default().insert((tid, name)),
            Some(_) => {}
            None => return Ok(UNTOLD.to_owned()),
        }
    }
    equal(&ours, &wanted)
}

/// Strings of /proc, each with a zero byte behind it.
fn joined(strings: Vec<String>) -> Vec<u8> {
    strings.into_iter().flat_map(|string| [string.into_bytes(), vec![0]].concat()).collect()
}

/// A file of those processes that are not kernel threads.
fn user_files(truth: &Truth, name: &str) -> BTreeMap<u32, Vec<u8>> {
    let mut files = truth.files(name);
    files.retain(|_, bytes| !bytes.is_empty());
    files
}

fn command_lines(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let ours = each(linux, |task| Ok(joined(task.command_line()?)))?;
    let Some(mut ours) = ours else { return Ok(UNTOLD.to_owned()) };
    ours.retain(|_, bytes| !bytes.is_empty());
    equal(&ours, &user_files(truth, "cmdline"))
}

fn environments(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let ours = each(linux, |task| Ok(joined(task.environment()?)))?;
    let Some(mut ours) = ours else { return Ok(UNTOLD.to_owned()) };
    ours.retain(|_, bytes| !bytes.is_empty());
    equal(&ours, &user_files(truth, "environ"))
}

fn memory_areas(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let rights = |area: &vmi::MemoryArea| {
        let flag = |on, letter| if on { letter } else { '-' };
        let shared = if area.shared { 's' } else { 'p' };
        [flag(area.read, 'r'), flag(area.write, 'w'), flag(area.execute, 'x'), shared].iter().collect()
    };
    let ours = each(linux, |task| {
        task.memory_areas()
            .map(|area| {
                let area = area?;
                let (start, end) = (area.start.get(), area.end.get());
                Ok(Area { start, end, rights: rights(&area), offset: area.offset, name: area.name })
            })
            .collect::<Result<Vec<_>>>()
    })?;
    let Some(mut ours) = ours else { return Ok(UNTOLD.to_owned()) };
    ours.retain(|_, areas| !areas.is_empty());
    let mut wanted = truth.areas();
    if linux.symbols().find("gate_vma").is_none() {
        wanted.values_mut().for_each(|areas| areas.retain(|area| area.name.as_deref() != Some("[vsyscall]")));
    }
    wanted.retain(|_, areas| !areas.is_empty());
    equal(&ours, &wanted)
}

/// Each 4-byte word of the witness's pages is its own address xor 0x5a5a5a5a.
fn known_pages(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let pid = truth.facts("witness")[0].1 as u32;
    let memory = linux.process(pid).and_then(|task| task.memory()).map_err(|error| error.to_string())?;
    let memory = memory.ok_or("the witness has no memory")?;
    let mut pages = 0;
    for (words, at) in truth.facts("page") {
        let read = memory.read_vec(VirtAddr::new(at), 4096);
        match (words.as_str(), read) {
            ("absent rw", Err(error)) if matches!(error.kind(), ErrorKind::Fault(_)) => {}
            ("zero rw", Ok(bytes)) if bytes.iter().all(|&byte| byte == 0) => {}
            ("present none" | "present r" | "present rw" | "huge rw" | "file rw", Ok(bytes))
                if bytes.chunks(4).zip((at..).step_by(4)).all(|(word, at)| word == (at as u32 ^ 0x5a5a_5a5a).to_le_bytes()) => {}
            (words, read) => return Err(format!("{words} at {at:#x}: {:?}", read.map(|bytes| bytes[..16].to_vec()))),
        }
        pages += 1;
    }
    Ok(format!("{pages} equal"))
}

fn modules(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let row = |module: Result<vmi::Module>| {
        let module = module?;
        Ok((module.name, module.size, module.references.unwrap_or(0), module.base.get()))
    };
    let ours = told(Guest::modules(linux).map(row).collect::<Result<Vec<_>>>())?;
    let Some(mut ours) = ours else { return Ok(UNTOLD.to_owned()) };
    let wanted = truth.modules();
    for (ours, _) in ours.iter_mut().zip(&wanted).filter(|(_, wanted)| wanted.3 == 0) {
        ours.3 = 0;
    }
    if ours == wanted { Ok(format!("{} equal", wanted.len())) } else { Err(format!("{ours:?}, in truth {wanted:?}")) }
}

/// As dmesg prints it: a time before each line, where the kernel was not told to do without (`CONFIG_PRINTK_TIME`).
fn kernel_log(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let records = told(linux.kernel_log().collect::<Result<Vec<_>>>())?;
    let Some(records) = records else { return Ok(UNTOLD.to_owned()) };
    let wanted = truth.text("dmesg");
    let wanted: Vec<_> = wanted.trim_end().lines().collect();
    let timed = wanted.iter().all(|line| line.starts_with('['));
    let mut lines = Vec::new();
    for record in &records {
        let (seconds, micros) = (record.nanoseconds / 1_000_000_000, record.nanoseconds / 1000 % 1_000_000);
        let time = if timed { format!("[{seconds:5}.{micros:06}] ") } else { String::new() };
        lines.extend(record.text.split('\n').map(|line| format!("{time}{line}")));
    }
    // The guest may have logged on before the image was taken.
    match lines.iter().zip(&wanted).position(|(ours, wanted)| ours != wanted) {
        None if lines.len() >= wanted.len() => Ok(format!("{} equal, {} later", wanted.len(), lines.len() - wanted.len())),
        None => Err(format!("{} of {} lines", lines.len(), wanted.len())),
        Some(line) => Err(format!("line {line}: {:?}, in truth {:?}", lines[line], wanted[line])),
    }
}

fn symbols(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let row = |symbol: vmi::Symbol<'_>| {
        (symbol.address.get(), symbol.kind, symbol.name.to_owned(), symbol.module.unwrap_or_default().to_owned())
    };
    // What inference found out (of no kind) is not in the guest's own table.
    let mut ours: Vec<_> = linux.symbols().iter().filter(|symbol| symbol.kind != b'?').map(row).collect();
    let Some(mut wanted) = truth.symbols() else { return Ok(UNTOLD.to_owned()) };
    let mut said = String::new();
    if told(linux.modules().collect::<Result<Vec<_>>>())?.is_none() {
        let all = wanted.len();
        wanted.retain(|symbol| symbol.3.is_empty());
        said = format!(", {} of modules {UNTOLD}", all - wanted.len());
    }
    if linux.symbol_remarks().iter().any(|remark| remark.contains("export")) {
        said = ", but for which symbols modules export".to_owned();
        for symbol in ours.iter_mut().chain(&mut wanted).filter(|symbol| !symbol.3.is_empty()) {
            symbol.1.make_ascii_lowercase();
        }
    }
    ours.sort();
    wanted.sort();
    if ours == wanted {
        return Ok(format!("{} equal{said}", wanted.len()));
    }
    let (left, right): (BTreeSet<_>, BTreeSet<_>) = (ours.iter().collect(), wanted.iter().collect());
    let more: Vec<_> = left.difference(&right).take(5).collect();
    let less: Vec<_> = right.difference(&left).take(5).collect();
    let remarks = linux.symbol_remarks();
    Err(format!("{} of {}; only ours: {more:x?}; only in truth: {less:x?}; {remarks:?}", ours.len(), wanted.len()))
}

/// The hardware clock tells whole seconds.
fn boot_time(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let Some(boot) = told(linux.boot_time())? else { return Ok(UNTOLD.to_owned()) };
    let ours = boot.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    match truth.boot_time() {
        Some(wanted) if (ours - wanted).abs() < 1.0 => Ok(format!("{ours:.3}, in truth {wanted:.3}")),
        wanted => Err(format!("{ours}, in truth {wanted:?}")),
    }
}

/// The text is that of the note whose place and room /sys/kernel/vmcoreinfo tells.
fn vmcoreinfo(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let Some(ours) = told(linux.vmcoreinfo())? else { return Ok(UNTOLD.to_owned()) };
    let told = truth.text("vmcoreinfo");
    let at = told.split_whitespace().next().and_then(|at| u64::from_str_radix(at.trim_start_matches("0x"), 16).ok());
    let note = PhysAddr::new(at.ok_or_else(|| format!("/sys/kernel/vmcoreinfo says {told}"))?);
    // Lengths of name and text, type, and the name `VMCOREINFO` in twelve bytes (elf(5), Nhdr).
    let len: u32 = linux.kernel_space().vmi().read(note.wrapping_add(4)).map_err(|error| error.to_string())?;
    let text = linux.kernel_space().vmi().read_vec(note.wrapping_add(24), len as usize).map_err(|error| error.to_string())?;
    if text == ours { Ok(format!("{len} equal")) } else { Err(format!("{} bytes, in truth {len}", ours.len())) }
}

/// Every module with BTF has types, and they continue the kernel's.
fn module_types(linux: &Image<'_>, truth: &Truth) -> Outcome {
    let names = truth.text("btf");
    let names: Vec<_> = names.lines().filter_map(|line| line.split_whitespace().last()).collect();
    let mut count = 0;
    for name in truth.modules().into_iter().map(|module| module.0).filter(|name| names.contains(&name.as_str())) {
        let types = told(linux.module_types(&name)).map_err(|error| format!("{name}: {error}"))?;
        let Some(types) = types else { return Ok(UNTOLD.to_owned()) };
        if types.structure("task_struct").is_err() {
            return Err(format!("{name}: {types:?}"));
        }
        count += 1;
    }
    Ok(format!("of {count} modules"))
}
