//! What the examples share: the target argument, output as table or JSON, exit codes.
#![allow(dead_code, unreachable_pub)] // each example uses its part

pub mod table;
pub mod text;

use core::fmt::Display;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use vmi::file::{OpenOptions, RawMap};
use vmi::{AnyDriver, Guest, Target, Vmi};

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
    /// Memory image: raw, LiME or ELF core, also compressed by zstd or gzip [default: the demo image of this repository]
    target: Option<Target>,

    /// Print a JSON array, one object a line; docs/json.md describes the fields
    #[arg(long)]
    json: bool,

    /// Print no notes, only errors
    #[arg(long, short)]
    quiet: bool,

    /// Memory lies so in a raw image that leaves out holes: 0x0-0xc0000000,0x100000000-0x140000000
    #[arg(long, value_name = "MAP")]
    raw_map: Option<RawMap>,

    /// Read what there is of an image that is cut short
    #[arg(long)]
    allow_truncated: bool,
}

impl Common {
    /// Opens the target, or the demo image.
    pub fn open(&self) -> anyhow::Result<Vmi<AnyDriver>> {
        let target = self.target.clone().unwrap_or_else(|| {
            self.note(format_args!("no target given: this is the demo image of the repository, {DEMO}"));
            Path::new(DEMO).into()
        });
        let bar = progress_bar("unpacking");
        let mut options = OpenOptions::new().allow_truncated(self.allow_truncated).progress({
            let bar = bar.clone();
            move |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            }
        });
        if let Some(map) = &self.raw_map {
            options = options.raw_map(map.clone());
        }
        let opened = vmi::open_with(target, options);
        bar.finish_and_clear();
        Ok(opened?)
    }

    /// Finds out which operating system is inside, and notes what is to be known about that.
    pub fn attach<'v>(&self, vmi: &'v Vmi<AnyDriver>) -> anyhow::Result<Box<dyn Guest + 'v>> {
        let guest = vmi::attach(vmi)?;
        self.note(guest.version());
        for remark in guest.remarks() {
            self.note(remark);
        }
        Ok(guest)
    }

    /// Where rows go: an aligned table, or JSON if that is asked for.
    pub fn table(&self, columns: &'static [Column]) -> Table {
        Table::new(columns, self.json)
    }

    /// Prints a note on standard error, unless it is to be quiet.
    pub fn note(&self, text: impl Display) {
        if !self.quiet {
            anstream::eprintln!("\x1b[36mnote:\x1b[0m {}", text::printable(&text.to_string()));
        }
    }
}

/// A bar on standard error; none if that is not a terminal.
pub fn progress_bar(action: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}");
    ProgressBar::no_length().with_message(action).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Prints an error on standard error.
pub fn complain(error: impl Display) {
    anstream::eprintln!("\x1b[1;31merror:\x1b[0m {error}");
}

/// Runs an example and prints the error that ended it.
///
/// A reader that closes the pipe early (`| head`) has all it wanted: no error.
pub fn run(example: impl FnOnce() -> anyhow::Result<ExitCode>) -> ExitCode {
    match example() {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
