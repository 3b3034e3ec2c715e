//! What a domain says of itself.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};

use crate::domain::Domain;

/// A process, as /proc/PID/status has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    /// The letter: R, S, D, I, Z. Process 1, which executes the command, says S; the process that lists is not in the list.
    pub(crate) state: char,
    pub(crate) uid: u32,
    pub(crate) threads: u32,
    /// Of at most 15 bytes, but of kernel workers with what they work on: see [`Process::task_name`].
    pub(crate) name: String,
}

impl Process {
    /// The name as the task has it: without a kernel worker's work, and not longer than 15 bytes.
    pub(crate) fn task_name(&self) -> String {
        let name = self.name.split_once('-').filter(|_| self.name.starts_with("kworker/")).map_or(&*self.name, |(name, _)| name);
        name.chars().take(15).collect()
    }

    /// Whether it may come and go at any time.
    pub(crate) fn is_worker(&self) -> bool {
        self.parent == 2 && self.name.starts_with("kworker/")
    }
}

/// A module, as /proc/modules has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Module {
    pub(crate) name: String,
    /// Bytes of all its parts.
    pub(crate) size: u64,
    pub(crate) references: u64,
    /// Which modules use it.
    pub(crate) users: Vec<String>,
    pub(crate) address: u64,
}

/// The pages of the process `domu hold`. Word w of a page is its own virtual address xor [`Held::PATTERN`] until somebody writes it; the last byte is RET.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) pid: u32,
    /// Virtual address of the first page; the same in each process that runs `domu`.
    pub(crate) address: u64,
    /// The number of each page in the domain's (pseudo-)physical memory, from /proc/PID/pagemap.
    pub(crate) frames: Vec<u64>,
}

impl Held {
    pub(crate) const PATTERN: u64 = 0x5a5a_5a5a_5a5a_5a5a;

    /// What the page has if nobody wrote to it.
    pub(crate) fn content(&self, page: usize) -> Vec<u8> {
        let at = self.address + 4096 * page as u64;
        let mut bytes: Vec<u8> = (0..512).flat_map(|word| ((at + 8 * word) ^ Self::PATTERN).to_le_bytes()).collect();
        bytes[4095] = 0xc3;
        bytes
    }
}

/// All processes but the one that lists them.
pub(crate) fn processes(domain: &Domain) -> Result<BTreeSet<Process>> {
    let text = domain.run("domu ps")?;
    let row = |line: &str| -> Option<Process> {
        let mut words = line.strip_prefix("ps ")?.splitn(6, ' ');
        let mut next = || words.next();
        Some(Process {
            pid: next()?.parse().ok()?,
            parent: next()?.parse().ok()?,
            state: next()?.chars().next()?,
            uid: next()?.parse().ok()?,
            threads: next()?.parse().ok()?,
            name: next()?.to_owned(),
        })
    };
    let mut rows = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("ps ")) {
        rows.insert(row(line).with_context(|| line.to_owned())?);
    }
    rows.retain(|process| process.name != "domu" || process.state != 'R');
    ensure!(rows.len() > 20, "too few processes:\n{text}");
    Ok(rows)
}

/// The loaded modules.
pub(crate) fn modules(domain: &Domain) -> Result<BTreeSet<Module>> {
    let text = domain.run("cat /proc/modules")?;
    let row = |line: &str| -> Option<Module> {
        let words: Vec<&str> = line.split(' ').collect();
        Some(Module {
            name: (*words.first()?).to_owned(),
            size: words.get(1)?.parse().ok()?,
            references: words.get(2)?.parse().ok()?,
            users: words.get(3)?.split(',').filter(|user| !matches!(*user, "" | "-")).map(str::to_owned).collect(),
            address: hex(words.get(5)?)?,
        })
    };
    text.lines().map(|line| row(line).with_context(|| line.to_owned())).collect()
}

/// The addresses of these symbols in /proc/kallsyms; for one that is there more than once, all of them.
pub(crate) fn symbols(domain: &Domain, names: &[&str]) -> Result<BTreeMap<String, BTreeSet<u64>>> {
    let text = domain.run(&format!("grep -E ' ({})(\\s.*)?$' /proc/kallsyms", names.join("|")))?;
    table(&text)
}

/// Each `step`th line of /proc/kallsyms, and all of modules.
pub(crate) fn sample_of_symbols(domain: &Domain, step: u32) -> Result<BTreeMap<String, BTreeSet<u64>>> {
    let text = domain.run(&format!("awk 'NR % {step} == 0 || /\\[/ {{ print $1, $2, $3 }}' /proc/kallsyms"))?;
    table(&text)
}

fn table(text: &str) -> Result<BTreeMap<String, BTreeSet<u64>>> {
    let mut table: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let row = (|| Some((hex(words.next()?)?, words.nth(1)?.to_owned())))();
        let (address, name) = row.with_context(|| line.to_owned())?;
        table.entry(name).or_default().insert(address);
    }
    ensure!(!table.is_empty(), "no symbols");
    Ok(table)
}

/// The pages of `domu hold`.
pub(crate) fn held(domain: &Domain) -> Result<Held> {
    let text = domain.run("cat /run/held.facts")?;
    let fact = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|line| line.split(' ').next()).with_context(|| format!("no {name}: {text}"))
    };
    let frames = text.lines().filter_map(|line| hex(line.strip_prefix("pfn ")?.split_once(' ')?.1)).collect();
    Ok(Held { pid: fact("pid")?.parse()?, address: hex(fact("held")?).context("held")?, frames })
}

/// Bytes of memory at these physical addresses that the kernel takes for RAM: `System RAM` of /proc/iomem.
pub(crate) fn ram(domain: &Domain) -> Result<Vec<std::ops::RangeInclusive<u64>>> {
    let text = domain.run("grep 'System RAM' /proc/iomem")?;
    let row = |line: &str| {
        let (start, end) = line.split_once(" : ")?.0.trim().split_once('-')?;
        Some(hex(start)?..=hex(end)?)
    };
    text.lines().map(|line| row(line).with_context(|| line.to_owned())).collect()
}

/// How many context switches there have been, of all processors.
pub(crate) fn context_switches(domain: &Domain) -> Result<u64> {
    let text = domain.run("grep ^ctxt /proc/stat")?;
    text.trim().rsplit(' ').next().and_then(|number| number.parse().ok()).with_context(|| text.clone())
}

/// A number in hexadecimal digits, with or without 0x.
pub(crate) fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}
