//! The QEMU processes of this host, and what their command lines say of them.
//!
//! A command line is written by whoever started QEMU: it says where sockets are to be found, and is believed in nothing else.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::gdb::GdbAddress;

/// A QEMU process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuProcess {
    pid: u32,
    user: Option<u32>,
    options: CommandLine,
    refused: Option<String>,
}

/// What a QEMU command line says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct CommandLine {
    name: Option<String>,
    memory: Option<String>,
    qmp: Vec<PathBuf>,
    gdb: Option<GdbAddress>,
    shared: bool,
}

/// Why a process cannot be looked at as a QEMU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// It cannot be looked at.
    #[error("{0}: no such process, or it belongs to somebody else")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it runs `{0}`, which is no QEMU of whole x86 machines")]
    NotQemu(String),
}

/// The QEMU processes that this user can see, by process id.
pub fn processes() -> Vec<QemuProcess> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<QemuProcess> = pids.filter_map(|pid| QemuProcess::find(pid).ok()).collect();
    found.sort_by_key(|process| process.pid);
    found
}

impl QemuProcess {
    /// The QEMU process with this id.
    ///
    /// # Errors
    /// [`ProcessError`] if there is none, or if it is something else.
    pub fn find(pid: u32) -> Result<Self, ProcessError> {
        let root = Path::new("/proc").join(pid.to_string());
        let line = std::fs::read(root.join("cmdline"))?;
        let arguments = words(&line);
        let program = arguments.first().map(PathBuf::from).unwrap_or_default();
        if !is_qemu(&program) {
            return Err(ProcessError::NotQemu(program.to_string_lossy().into_owned()));
        }
        let mut options = CommandLine::parse(&arguments);
        let gdb = options.gdb.iter_mut().filter_map(|address| match address {
            GdbAddress::Unix(socket) => Some(socket),
            GdbAddress::Tcp(_) => None,
        });
        for socket in options.qmp.iter_mut().chain(gdb).filter(|socket| socket.is_relative()) {
            *socket = from_start(&root, socket);
        }
        let user = std::fs::metadata(&root).ok().map(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata));
        // What decides about its memory decides about its list of mappings too (proc(5): PTRACE_MODE_READ).
        let refused = std::fs::File::open(root.join("maps")).and_then(|mut maps| io::Read::read(&mut maps, &mut [0; 64]));
        let refused = refused.err().map(|error| format!("{error}; run as the user whose QEMU this is, or as root"));
        Ok(Self { pid, user, options, refused })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The user whose process it is.
    pub fn user(&self) -> Option<u32> {
        self.user
    }

    /// The guest's name, if it was given one (`-name`).
    pub fn name(&self) -> Option<&str> {
        self.options.name.as_deref()
    }

    /// How much memory the guest was given, as it was written (`-m`).
    pub fn memory(&self) -> Option<&str> {
        self.options.memory.as_deref()
    }

    /// The QMP sockets, as paths that can be opened from here.
    pub fn qmp_sockets(&self) -> &[PathBuf] {
        &self.options.qmp
    }

    /// The gdb stub that it was started with (`-gdb`, `-s`).
    pub fn gdb_stub(&self) -> Option<&GdbAddress> {
        self.options.gdb.as_ref()
    }

    /// Whether some of the guest's memory is shared, so that it can be mapped.
    pub fn has_shared_memory(&self) -> bool {
        self.options.shared
    }

    /// Why this user may not look at its memory; `None` if it may.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }
}

/// The words of a command line, each of which ends with a zero (proc(5)).
fn words(line: &[u8]) -> Vec<OsString> {
    line.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect()
}

/// Takes any bytes for a command line, for tests. Gives how much of it was understood.
#[doc(hidden)]
pub fn exercise(line: &[u8]) -> usize {
    let found = CommandLine::parse(&words(line));
    let others = [found.name.is_some(), found.memory.is_some(), found.gdb.is_some(), found.shared];
    found.qmp.len().saturating_add(others.iter().filter(|found| **found).count())
}

/// A relative path of the process, seen from here. It starts where the process was started, which is not where it is: a QEMU that made itself
/// a daemon is at the root.
pub(crate) fn from_start(root: &Path, path: &Path) -> PathBuf {
    let there = root.join("cwd").join(path);
    if there.exists() {
        return there;
    }
    let environment = std::fs::read(root.join("environ")).unwrap_or_default();
    let start = environment.split(|byte| *byte == 0).find_map(|line| line.strip_prefix(b"PWD="));
    start.map_or(there, |start| {
        root.join("root").join(PathBuf::from(OsString::from_vec(start.get(1..).unwrap_or_default().to_vec()))).join(path)
    })
}

/// Whether a program is a QEMU of whole x86 machines by its name: `qemu-system-x86_64`, `qemu-system-i386`, `qemu-kvm`, or `kvm`.
fn is_qemu(program: &Path) -> bool {
    let name = program.file_name().unwrap_or_default().as_bytes();
    let known = [b"qemu-system-x86_64".as_slice(), b"qemu-system-i386", b"qemu-kvm"];
    name == b"kvm" || known.iter().any(|known| name.starts_with(known))
}

impl CommandLine {
    /// QEMU takes options with one dash or two (QEMU: `lookup_opt` in system/vl.c).
    fn parse(arguments: &[OsString]) -> Self {
        let mut found = Self::default();
        // Character devices by id, and the ids that monitors of mode "control" use.
        let mut sockets: Vec<(String, PathBuf)> = Vec::new();
        let mut monitors: HashSet<String> = HashSet::new();
        let mut words = arguments.iter().skip(1).map(|word| word.to_string_lossy());
        while let Some(word) = words.next() {
            let Some(option) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { continue };
            if option == "s" {
                found.gdb = "tcp::1234".parse().ok();
            }
            if !matches!(option, "name" | "m" | "qmp" | "qmp-pretty" | "gdb" | "object" | "chardev" | "mon") {
                continue;
            }
            let Some(value) = words.next() else { break };
            let fields = Fields::parse(&value);
            match option {
                "name" => found.name = fields.get("guest").or(fields.first()).map(str::to_owned),
                "m" => found.memory = fields.get("size").or(fields.first()).map(str::to_owned),
                "qmp" | "qmp-pretty" => {
                    found.qmp.extend(fields.first().and_then(|first| first.strip_prefix("unix:")).map(PathBuf::from))
                }
                "gdb" => found.gdb = value.parse().ok(),
                "object" => {
                    let backend = fields.first().is_some_and(|kind| kind.starts_with("memory-backend-"));
                    // Memfds are shared unless they are said not to be (QEMU: docs/system, memory-backend-memfd).
                    let share =
                        fields.get("share").unwrap_or(if fields.first() == Some("memory-backend-memfd") { "on" } else { "off" });
                    found.shared |= backend && matches!(share, "on" | "yes" | "true" | "y");
                }
                "chardev" if fields.first() == Some("socket") => {
                    sockets.extend(fields.get("id").zip(fields.get("path")).map(|(id, path)| (id.to_owned(), path.into())));
                }
                "mon" if fields.get("mode") == Some("control") => {
                    monitors.extend(fields.get("chardev").or(fields.first()).map(str::to_owned));
                }
                _ => {}
            }
        }
        let controls = sockets.into_iter().filter(|(id, _)| monitors.contains(id)).map(|(_, path)| path);
        found.qmp.extend(controls);
        found
    }
}

/// `first,key=value,...`, a comma inside doubled (QEMU: docs/system/invocation, util/keyval.c).
struct Fields(Vec<(String, String)>);

impl Fields {
    fn parse(text: &str) -> Self {
        if text.starts_with('{')
            && let Ok(serde_json::Value::Object(object)) = serde_json::from_str(text)
        {
            return Self::of_json(object);
        }
        let mut parts = vec![String::new()];
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            if character == ',' && characters.next_if_eq(&',').is_none() {
                parts.push(String::new());
            } else if let Some(last) = parts.last_mut() {
                last.push(character);
            }
        }
        let field = |part: String| match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (String::new(), part),
        };
        Self(parts.into_iter().map(field).collect())
    }

    /// libvirt writes objects as JSON: `{"qom-type":"memory-backend-memfd","id":"ram","share":true}`.
    fn of_json(mut object: serde_json::Map<String, serde_json::Value>) -> Self {
        let text = |value: serde_json::Value| match value {
            serde_json::Value::String(text) => text,
            serde_json::Value::Bool(on) => if on { "on" } else { "off" }.to_owned(),
            other => other.to_string(),
        };
        let kind = object.remove("qom-type").map(text).unwrap_or_default();
        let first = (String::new(), kind);
        Self(std::iter::once(first).chain(object.into_iter().map(|(key, value)| (key, text(value)))).collect())
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// The value in front, which needs no key.
    fn first(&self) -> Option<&str> {
        self.0.first().filter(|(key, _)| key.is_empty()).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str) -> CommandLine {
        CommandLine::parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn a_daemon_s_relative_paths_start_where_it_was_started() {
        let root = tempfile::tempdir().unwrap();
        let path = Path::new("g.sock");
        assert_eq!(from_start(root.path(), path), root.path().join("cwd/g.sock"), "nothing else is known");
        std::fs::write(root.path().join("environ"), b"HOME=/root\0PWD=/run/vm\0").unwrap();
        assert_eq!(from_start(root.path(), path), root.path().join("root/run/vm/g.sock"));
        std::fs::create_dir(root.path().join("cwd")).unwrap();
        std::fs::write(root.path().join("cwd/g.sock"), b"").unwrap();
        assert_eq!(from_start(root.path(), path), root.path().join("cwd/g.sock"), "no daemon");
    }

    #[test]
    fn command_lines_of_people() {
        let found = parse("qemu-system-x86_64 -m 2G -qmp unix:/run/a,,b,server=on,wait=off --gdb tcp::99 -name web -s-not");
        let expected = CommandLine {
            name: Some("web".to_owned()),
            memory: Some("2G".to_owned()),
            qmp: vec!["/run/a,b".into()],
            gdb: Some(GdbAddress::Tcp("localhost:99".to_owned())),
            shared: false,
        };
        assert_eq!(found, expected);
        assert_eq!(parse("qemu -s").gdb, Some(GdbAddress::Tcp("localhost:1234".to_owned())));
        for (object, shared) in [
            ("memory-backend-file,id=ram,size=1G,share=on,mem-path=/dev/shm/x", true),
            ("memory-backend-memfd,id=ram,size=1G", true),
            ("memory-backend-memfd,id=ram,share=off", false),
            ("memory-backend-ram,id=ram", false),
            (r#"{"qom-type":"memory-backend-file","id":"ram","share":true,"size":1024}"#, true),
            (r#"{"qom-type":"memory-backend-file","id":"ram"}"#, false),
            (r#"{"qom-type":"#, false),
            ("rng-random,id=x,share=on", false),
        ] {
            assert_eq!(parse(&format!("qemu -object {object}")).shared, shared, "{object}");
        }
    }

    #[test]
    fn the_command_line_of_libvirt() {
        let found = parse(
            "/usr/bin/qemu-system-x86_64 -name guest=web1,debug-threads=on -m size=262144k -chardev \
             socket,id=charmonitor,fd=22,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control -chardev \
             socket,id=mine,path=/run/mine.qmp,server=on -mon mine,mode=control -chardev socket,id=other,path=/run/other",
        );
        assert_eq!((found.name.as_deref(), found.memory.as_deref()), (Some("web1"), Some("262144k")));
        // the first socket is libvirt's own, by descriptor
        assert_eq!(found.qmp, [PathBuf::from("/run/mine.qmp")]);
    }

    #[test]
    fn other_programs_are_none() {
        for name in ["qemu-system-x86_64", "/usr/libexec/qemu-kvm", "/usr/bin/kvm", "qemu-system-i386", "qemu-system-x86_64-10"] {
            assert!(is_qemu(Path::new(name)), "{name}");
        }
        for name in ["", "qemu-system-aarch64", "qemu-img", "bash", "kvm-ok"] {
            assert!(!is_qemu(Path::new(name)), "{name}");
        }
        assert!(matches!(QemuProcess::find(std::process::id()), Err(ProcessError::NotQemu(_))));
        assert!(matches!(QemuProcess::find(u32::MAX), Err(ProcessError::Io(_))));
    }

    proptest! {
        #[test]
        fn any_command_line_is_taken(words in proptest::collection::vec("-{0,2}(name|m|qmp|gdb|object|chardev|mon|s)|[ -~]{0,30}", 0..12)) {
            let _ = CommandLine::parse(&words.into_iter().map(OsString::from).collect::<Vec<_>>());
        }

        #[test]
        fn fields_come_back(path in "[ -~&&[^=]]{0,20}", key in "[a-z]{1,5}") {
            let fields = Fields::parse(&format!("socket,{key}={}", path.replace(',', ",,")));
            prop_assert_eq!(fields.get(&key), Some(path.as_str()));
            prop_assert_eq!(fields.first(), Some("socket"));
        }
    }
}
