//! What a lab guest said of itself before its image was taken.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::PathBuf;

/// The directory `truth` of one guest: one file a source, mostly of /proc.
pub(crate) struct Truth {
    directory: PathBuf,
}

/// A line of /proc/PID/task/TID/stat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) tid: u32,
    pub(crate) tgid: u32,
    pub(crate) name: String,
    pub(crate) state: char,
    pub(crate) parent: u32,
    pub(crate) kernel: bool,
    /// In hundredths of a second since boot.
    pub(crate) started: u64,
}

/// A line of /proc/PID/maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) rights: String,
    pub(crate) offset: u64,
    pub(crate) name: Option<String>,
}

impl Truth {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.directory.join(name)).unwrap_or_else(|error| panic!("{}/{name}: {error}", self.directory.display()))
    }

    pub(crate) fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&self.bytes(name)).into_owned()
    }

    pub(crate) fn unpacked(&self, name: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = fs::File::open(self.directory.join(name)).ok()?;
        flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
        Some(bytes)
    }

    /// All tasks, threads included.
    pub(crate) fn tasks(&self) -> Vec<Stat> {
        let threads: BTreeSet<u32> = self.facts("thread").into_iter().map(|(_, tid)| tid as u32).collect();
        let witness = self.facts("witness")[0].1 as u32;
        let line = |line: &str| {
            let (tid, rest) = line.split_once(" (")?;
            let (name, rest) = rest.rsplit_once(") ")?;
            let fields: Vec<_> = rest.split(' ').collect();
            let tid = tid.parse().ok()?;
            Some(Stat {
                tid,
                // Only the witness has more than one thread.
                tgid: if threads.contains(&tid) { witness } else { tid },
                name: name.to_owned(),
                state: fields[0].chars().next()?,
                parent: fields[1].parse().ok()?,
                kernel: fields[6].parse::<u32>().ok()? & 0x20_0000 != 0,
                started: fields[19].parse().ok()?,
            })
        };
        self.text("tasks.stat").lines().filter_map(line).collect()
    }

    /// A line of each /proc/PID/status by process.
    pub(crate) fn status(&self, key: &str) -> BTreeMap<u32, String> {
        let text = self.text("tasks.status");
        let line = |line: &str| {
            let (path, rest) = line.split_once("/status:")?;
            let (name, value) = rest.split_once(":\t")?;
            (name == key).then_some(())?;
            Some((path.strip_prefix("/proc/")?.parse().ok()?, value.to_owned()))
        };
        text.lines().filter_map(line).collect()
    }

    /// A file of each process, as `tail -n +1` printed them.
    pub(crate) fn files(&self, name: &str) -> BTreeMap<u32, Vec<u8>> {
        let bytes = self.bytes(&format!("tasks.{name}"));
        let mut files = BTreeMap::new();
        let end = format!("/{name} <==\n");
        let mut rest = &bytes[..];
        while let Some(start) = find(rest, b"==> /proc/") {
            rest = &rest[start + 10..];
            let Some(head) = find(rest, end.as_bytes()) else { break };
            let pid = String::from_utf8_lossy(&rest[..head]).parse().unwrap();
            rest = &rest[head + end.len()..];
            // Between two files is one line end.
            let len = find(rest, b"\n==> /proc/").unwrap_or(rest.len());
            files.insert(pid, rest[..len].to_vec());
        }
        files
    }

    pub(crate) fn areas(&self) -> BTreeMap<u32, Vec<Area>> {
        let line = |line: &str| {
            let mut fields = line.splitn(6, ' ');
            let (start, end) = fields.next()?.split_once('-')?;
            let rights = fields.next()?.to_owned();
            let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
            let name = fields.nth(2).map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned);
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            Some(Area { start: number(start), end: number(end), rights, offset, name })
        };
        let files = self.files("maps").into_iter();
        files.map(|(pid, text)| (pid, String::from_utf8_lossy(&text).lines().filter_map(line).collect())).collect()
    }

    /// Lines of `facts` that begin with `kind`: the words between, and the number at the end.
    pub(crate) fn facts(&self, kind: &str) -> Vec<(String, u64)> {
        let line = |line: &str| {
            let rest = line.strip_prefix(kind)?.strip_prefix(' ')?;
            let (words, number) = rest.rsplit_once("0x")?;
            Some((words.trim().to_owned(), u64::from_str_radix(number, 16).ok()?))
        };
        self.text("facts").lines().filter_map(line).collect()
    }

    /// When the guest booted, in seconds since 1970 and to the second: its log tells when it read its hardware clock, or, if that has no times, /proc/stat.
    pub(crate) fn boot_time(&self) -> Option<f64> {
        self.clock_was_read().or_else(|| self.text("stat").lines().find_map(|line| line.strip_prefix("btime ")?.parse().ok()))
    }

    fn clock_was_read(&self) -> Option<f64> {
        let log = self.text("dmesg");
        let line = log.lines().find(|line| line.contains("setting system clock to"))?;
        let since_boot: f64 = line.get(1..)?.split(']').next()?.trim().parse().ok()?;
        let clock: f64 = line.rsplit('(').next()?.trim_end_matches(')').parse().ok()?;
        Some(clock - since_boot)
    }

    /// Name, size, references and address (zero where the kernel hides it) of each module, in the order of /proc/modules.
    pub(crate) fn modules(&self) -> Vec<(String, u64, u32, u64)> {
        let line = |line: &str| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let base = u64::from_str_radix(fields[5].strip_prefix("0x").unwrap(), 16).unwrap();
            (fields[0].to_owned(), fields[1].parse().unwrap(), fields[2].parse().unwrap(), base)
        };
        self.text("modules").lines().map(line).collect()
    }

    /// Address, letter, name and module of each symbol, sorted; `None` if the kernel keeps no symbols.
    pub(crate) fn symbols(&self) -> Option<Vec<(u64, u8, String, String)>> {
        let text = String::from_utf8(self.unpacked("kallsyms.gz")?).unwrap();
        let line = |line: &str| {
            let mut fields = line.split_whitespace();
            let address = u64::from_str_radix(fields.next()?, 16).ok()?;
            let (kind, name) = (fields.next()?.as_bytes()[0], fields.next()?.to_owned());
            let module = fields.next().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            Some((address, kind, name, module))
        };
        let mut symbols: Vec<_> = text.lines().filter_map(line).collect();
        symbols.sort();
        Some(symbols)
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, what)
}
