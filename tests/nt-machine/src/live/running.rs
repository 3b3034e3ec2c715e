//! A live machine that runs in QEMU.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::{Value, json};

use super::{GuestTruth, LiveMachine};

/// Where QEMU keeps the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Anonymous memory of QEMU.
    Private,
    /// The file `memory` in the machine's directory, shared: the guest's memory is the file's.
    SharedFile,
}

/// A live machine in QEMU. It ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    directory: PathBuf,
    monitor: BufReader<UnixStream>,
    account: u64,
}

impl LiveMachine {
    /// Boots the machine by `qemu-system-x86_64` with its files in a directory, and waits until its kernel changes the list. Besides the monitor that
    /// [`Running::command`] speaks to there is one for the library under test, the socket [`Running::monitor`].
    ///
    /// # Errors
    /// QEMU is not there or does not come up within 30 seconds.
    pub fn start(&self, directory: &Path, backing: Backing, more: &[&str]) -> Result<Running, String> {
        let say = |error: std::io::Error| error.to_string();
        let boot = directory.join("boot.elf");
        self.write_boot_file(&boot).map_err(say)?;
        let sockets = ["own.qmp", "qmp"].map(|name| directory.join(name));
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(self.qemu_arguments(&boot)).args(more);
        for socket in &sockets {
            let _ = fs::remove_file(socket);
            qemu.arg("-qmp").arg(format!("unix:{},server,nowait", socket.display()));
        }
        if backing == Backing::SharedFile {
            let file = directory.join("memory");
            qemu.arg("-object").arg(format!(
                "memory-backend-file,id=ram,size={},share=on,mem-path={}",
                self.memory,
                file.display()
            ));
            qemu.args(["-machine", "pc,memory-backend=ram"]);
        }
        let errors = fs::File::create(directory.join("qemu.log")).map_err(say)?;
        let mut child = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .map_err(|error| format!("qemu-system-x86_64: {error}"))?;
        let end = Instant::now() + Duration::from_secs(30);
        let stream = loop {
            match UnixStream::connect(&sockets[0]) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < end && child.try_wait().map_err(say)?.is_none() => {
                    thread::sleep(Duration::from_millis(20))
                }
                Err(error) => {
                    let _ = child.kill();
                    let log = fs::read_to_string(directory.join("qemu.log")).unwrap_or_default();
                    return Err(format!("QEMU did not come up: {error} {log}"));
                }
            }
        };
        let mut running =
            Running { child, directory: directory.to_owned(), monitor: BufReader::new(stream), account: self.truth_address().1 };
        running.monitor.read_line(&mut String::new()).map_err(say)?;
        running.command("qmp_capabilities", json!({}))?;
        loop {
            match running.account()? {
                Some(account) if account.ended > 4 => return Ok(running),
                _ if Instant::now() > end => return Err("the guest's kernel does not run".to_owned()),
                _ => thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Running {
    /// The process id of QEMU.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The socket of the second monitor.
    pub fn monitor(&self) -> PathBuf {
        self.directory.join("qmp")
    }

    /// A command of the monitor, and what it returns.
    ///
    /// # Errors
    /// What the monitor says.
    pub fn command(&mut self, name: &str, arguments: Value) -> Result<Value, String> {
        let line = json!({"execute": name, "arguments": arguments}).to_string();
        self.monitor.get_mut().write_all(line.as_bytes()).map_err(|error| error.to_string())?;
        loop {
            let mut answer = String::new();
            if self.monitor.read_line(&mut answer).map_err(|error| error.to_string())? == 0 {
                return Err("QEMU has ended".to_owned());
            }
            let answer: Value = serde_json::from_str(&answer).map_err(|error| error.to_string())?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                return Err(error.to_string());
            }
        }
    }

    /// Physical memory, as the monitor writes it out.
    ///
    /// # Errors
    /// What the monitor says.
    pub fn physical(&mut self, at: u64, len: u64) -> Result<Vec<u8>, String> {
        let file = self.directory.join("part");
        self.command("pmemsave", json!({"val": at, "size": len, "filename": file.to_string_lossy()}))?;
        fs::read(&file).map_err(|error| error.to_string())
    }

    /// The guest's own account at this moment; `None` until it has begun. Of a running guest it may be half changed; of a paused one it agrees with the list if its
    /// generation is even.
    ///
    /// # Errors
    /// What the monitor says.
    pub fn account(&mut self) -> Result<Option<GuestTruth>, String> {
        Ok(GuestTruth::parse(&self.physical(self.account, GuestTruth::SIZE as u64)?))
    }

    /// Pauses the guest at a moment at which its account agrees with its list.
    ///
    /// # Errors
    /// What the monitor says; or the guest is not between two changes in a hundred tries.
    pub fn pause(&mut self) -> Result<GuestTruth, String> {
        for _ in 0..100 {
            self.command("stop", json!({}))?;
            if let Some(account) = self.account()?.filter(|account| account.generation % 2 == 0) {
                return Ok(account);
            }
            self.resume()?;
        }
        Err("the guest changes its list without a pause".to_owned())
    }

    /// Lets the guest go on.
    ///
    /// # Errors
    /// What the monitor says.
    pub fn resume(&mut self) -> Result<(), String> {
        self.command("cont", json!({})).map(drop)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
