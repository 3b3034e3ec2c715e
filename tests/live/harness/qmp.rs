//! A small QMP client for what tests do to a guest behind the library's back. It shares no code with the library's.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// The longest that QEMU may take for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection with a monitor.
#[derive(Debug)]
pub(crate) struct Qmp(BufReader<UnixStream>);

/// A part of the guest-physical address space that is RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) length: u64,
    /// Of the memory backend, or what QEMU calls RAM that has none.
    pub(crate) backend: String,
    /// Where in the backend it starts.
    pub(crate) offset: u64,
}

impl Qmp {
    /// Connects, reads the greeting and leaves the negotiation mode.
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut qmp = Self(BufReader::new(stream));
        let mut greeting = String::new();
        qmp.0.read_line(&mut greeting).unwrap();
        assert!(greeting.contains("QMP"), "{greeting}");
        qmp.execute("qmp_capabilities", json!({})).unwrap();
        qmp
    }

    /// A command's `return`, or the description of its error. Events are passed over.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.0.get_mut().write_all(line.as_bytes()).map_err(|error| format!("{command}: {error}"))?;
        loop {
            let mut line = String::new();
            let length = self.0.read_line(&mut line).map_err(|error| format!("{command}: {error}"))?;
            if length == 0 {
                return Err(format!("{command}: QEMU closed the connection"));
            }
            let mut reply: Value = serde_json::from_str(&line).unwrap();
            if reply.get("return").is_some() {
                return Ok(reply["return"].take());
            }
            if let Some(error) = reply.get("error") {
                return Err(format!("{command}: {}", error["desc"]));
            }
        }
    }

    /// What a line prints on the human monitor.
    pub(crate) fn monitor(&mut self, line: &str) -> String {
        let text = self.execute("human-monitor-command", json!({ "command-line": line })).unwrap();
        text.as_str().unwrap().to_owned()
    }

    /// Whether the vCPUs run.
    pub(crate) fn is_running(&mut self) -> bool {
        self.execute("query-status", json!({})).unwrap()["running"] == true
    }

    /// Stops the vCPUs, runs `work`, and lets them run again.
    pub(crate) fn while_paused<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        self.execute("stop", json!({})).unwrap();
        let done = work(self);
        self.execute("cont", json!({})).unwrap();
        done
    }

    /// Guest-physical memory as QEMU itself writes it to a file.
    pub(crate) fn pmemsave(&mut self, start: u64, length: u64) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let arguments = json!({ "val": start, "size": length, "filename": file.path() });
        self.execute("pmemsave", arguments).unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        assert_eq!(bytes.len() as u64, length);
        bytes
    }

    /// Where a guest-physical address is in QEMU's process.
    pub(crate) fn host_address(&mut self, physical: u64) -> u64 {
        let text = self.monitor(&format!("gpa2hva {physical:#x}"));
        let address = text.trim().rsplit_once("is 0x").and_then(|(_, address)| u64::from_str_radix(address, 16).ok());
        address.unwrap_or_else(|| panic!("{text}"))
    }

    /// What is RAM in the machine's address space, of `info mtree -f`.
    pub(crate) fn ram(&mut self) -> Vec<Range> {
        ram_of(&self.monitor("info mtree -f"))
    }
}

/// What is RAM in the machine's address space, of the text of `info mtree -f`.
pub(crate) fn ram_of(tree: &str) -> Vec<Range> {
    let view = tree.split("Root memory region: system").nth(1).unwrap().split("FlatView").next().unwrap();
    let range = |line: &str| {
        let (range, rest) = line.trim().split_once(" (prio ")?;
        let (kind, name) = rest.split_once("): ")?;
        let (start, end) = range.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        let mut words = name.split_whitespace();
        let backend = words.next()?.to_owned();
        let offset = words.next().and_then(|word| u64::from_str_radix(word.strip_prefix('@')?, 16).ok()).unwrap_or(0);
        // What the chipset protects from writes is RAM still; ROM has names of its own.
        let ram = kind.ends_with("ram") || kind.ends_with("rom") && (backend.starts_with("ram") || backend.ends_with(".ram"));
        ram.then_some(Range { start, length: end - start + 1, backend, offset })
    };
    let ranges: Vec<_> = view.lines().filter_map(range).collect();
    assert!(!ranges.is_empty(), "{tree}");
    ranges
}
