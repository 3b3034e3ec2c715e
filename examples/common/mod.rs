//! What the examples share: the target argument, output as table or JSON, exit codes.
#![allow(dead_code, unreachable_pub)] // each example uses its part

pub mod events;
pub mod table;
pub mod text;
mod warnings;

use core::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use vmi::file::{OpenOptions, RawMap};
use vmi::kvm::{self, Road};
use vmi::linux::Linux;
use vmi::windows::Windows;
use vmi::{AnyDriver, AttachOptions, Guest, System, Target, Vmi};

use self::table::{Column, Table};

/// The memory image that this repository carries.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/debian-6.12.raw.zst");

/// What every `--help` ends with.
pub const EXIT_CODES: &str = "\
Rows go to standard output, everything else to standard error.

Exit codes:
  0  all is printed
  1  nothing could be read: the message says why
  2  the command line is wrong
  3  some rows could not be read: a message for each says why";

/// The arguments that all examples take.
#[derive(clap::Args, Debug)]
pub struct Common {
    /// Memory image of any common format, also packed (zstd, gzip, xz, lz4, bzip2, lzop), a qcow2 disk or a directory with a snapshot, or running guest: qemu:SOCKET, qemu:PID, gdb:ADDRESS, libvirt:NAME
    /// [default: the demo image of this repository]
    target: Option<Target>,

    /// Print a JSON array, one object a line; docs/json.md describes the fields
    #[arg(long)]
    json: bool,

    /// Print no notes and warnings, only errors
    #[arg(long, short)]
    quiet: bool,

    /// Memory lies so in a raw image that leaves out holes: 0x0-0xc0000000,0x100000000-0x140000000
    #[arg(long, value_name = "MAP")]
    raw_map: Option<RawMap>,

    /// Read what there is of an image that is cut short
    #[arg(long)]
    allow_truncated: bool,

    /// Read the snapshot of this name, or number, of a disk image with several [default: the newest with memory]
    #[arg(long, value_name = "NAME")]
    snapshot: Option<String>,

    /// Lay the image over this one, as a differential snapshot over the full one; more than once for what lies below that
    #[arg(long, value_name = "IMAGE")]
    base: Vec<PathBuf>,

    /// Read a running guest's memory in this way, or not at all: shared, process, pmemaccess or gdb [default: the best that works]
    #[arg(long, value_name = "ROAD")]
    road: Option<Road>,

    /// What describes the kernel: System.map, vmlinux, BTF, PDB or Volatility symbol file, or a directory with symbol files of Windows; more than once
    /// for several
    #[arg(long, value_name = "FILE")]
    symbols: Vec<PathBuf>,

    /// Fetch symbol files of Windows that are not on this machine from the servers of _NT_SYMBOL_PATH, or from Microsoft's
    #[cfg(feature = "download")]
    #[arg(long)]
    download: bool,
}

impl Common {
    /// Opens the target, or the demo image.
    pub fn open(&self) -> anyhow::Result<Vmi<AnyDriver>> {
        if !self.quiet {
            warnings::show();
        }
        let target = self.target.clone().unwrap_or_else(|| {
            self.note(format_args!("no target given: this is the demo image of the repository, {DEMO}"));
            Path::new(DEMO).into()
        });
        let mut image = OpenOptions::new().allow_truncated(self.allow_truncated).progress(progress("unpacking"));
        if let Some(map) = &self.raw_map {
            image = image.raw_map(map.clone());
        }
        if let Some(name) = &self.snapshot {
            image = image.snapshot(name);
        }
        image = self.base.iter().fold(image, OpenOptions::base);
        let qemu = self.road.map_or_else(kvm::Options::new, |road| kvm::Options::new().road(road));
        #[allow(clippy::needless_update, reason = "features of the library add fields")]
        let options = vmi::Options { image, qemu, ..vmi::Options::default() };
        Ok(vmi::open_with(target, options)?)
    }

    /// Finds out which operating system is inside, and notes what is to be known about that.
    pub fn attach<'v>(&self, vmi: &'v Vmi<AnyDriver>) -> anyhow::Result<Box<dyn Guest + 'v>> {
        let guest = vmi::attach_with(vmi, &self.known()?)?;
        self.note_all(&*guest);
        Ok(guest)
    }

    /// As [`Common::attach`], for what only one of the systems has.
    pub fn attach_system<'v>(&self, vmi: &'v Vmi<AnyDriver>) -> anyhow::Result<System<'v, AnyDriver>> {
        let system = vmi::attach_system(vmi, &self.known()?)?;
        self.note_all(system.guest());
        Ok(system)
    }

    /// Attaches to a Linux guest, and notes what is to be known about that.
    pub fn attach_linux<'v>(&self, vmi: &'v Vmi<AnyDriver>) -> anyhow::Result<Linux<'v, AnyDriver>> {
        let linux = Linux::with_kernel(vmi, vmi::linux::discover::find_with(vmi, self.known()?.linux())?)?;
        self.note_all(&linux);
        Ok(linux)
    }

    /// Attaches to a Windows guest, and notes what is to be known about that.
    pub fn attach_windows<'v>(&self, vmi: &'v Vmi<AnyDriver>) -> anyhow::Result<Windows<'v, AnyDriver>> {
        let windows = Windows::with_kernel(vmi, vmi::windows::discover::find_with(vmi, self.known()?.windows())?)?;
        self.note_all(&windows);
        Ok(windows)
    }

    /// What the user knows of the guest.
    fn known(&self) -> anyhow::Result<AttachOptions> {
        let options = AttachOptions::new();
        #[cfg(feature = "download")]
        let options = if self.download { options.download() } else { options };
        Ok(self.symbols.iter().try_fold(options, AttachOptions::symbols)?)
    }

    fn note_all(&self, guest: &dyn Guest) {
        self.note(guest.version());
        for remark in guest.remarks() {
            self.note(remark);
        }
    }

    /// Where rows go: an aligned table, or JSON if that is asked for.
    pub fn table(&self, columns: impl Into<Vec<Column>>) -> Table {
        Table::new(columns, self.json)
    }

    /// Prints a note on standard error, unless it is to be quiet.
    pub fn note(&self, text: impl Display) {
        if !self.quiet {
            say("\x1b[36mnote:\x1b[0m", text);
        }
    }
}

/// Shows what is done, of how much, as a bar on standard error; not at all if that is not a terminal. The bar goes with the closure.
pub fn progress(action: &'static str) -> impl FnMut(u64, u64) + Send + 'static {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}");
    let bar = ProgressBar::no_length()
        .with_message(action)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_finish(ProgressFinish::AndClear);
    move |done, total| {
        bar.update(|state| {
            state.set_len(total);
            state.set_pos(done);
        })
    }
}

/// Prints an error on standard error.
pub fn complain(error: impl Display) {
    say("\x1b[1;31merror:\x1b[0m", error);
}

/// Nothing can be done if nobody reads standard error.
fn say(label: &str, text: impl Display) {
    let message = text.to_string();
    let lines: Vec<_> = message.lines().map(text::printable).collect();
    let _ = writeln!(anstream::stderr(), "{label} {}", lines.join("\n"));
}

/// Runs an example and prints the error that ended it.
///
/// A reader that closes the pipe early (`| head`) has all it wanted: no error.
pub fn run(example: impl FnOnce() -> anyhow::Result<ExitCode>) -> ExitCode {
    match example() {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, but for those that it quotes itself.
fn with_causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |message, cause| match message.as_str() {
        "" => cause,
        _ if message.contains(&cause) => message,
        _ => format!("{message}: {cause}"),
    })
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
