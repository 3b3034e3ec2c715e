//! Which operating system is inside, as the layer's own type.
//!
//! The facade's `attach` answers with the trait that all systems share; types and the fields of one system need the layer itself. The order of the search is the facade's.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmi::linux::{AttachError as LinuxError, Linux, discover as linux, symbol_files};
use vmi::windows::{AttachError as WindowsError, SymbolFile, Windows, discover as windows};
use vmi::{AnyDriver, Isf, Note, Vmi};

use crate::errors::with_causes;
use crate::guest::System;

type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone, Copy)]
enum Step {
    Linux(&'static [linux::Strategy]),
    Windows(&'static [windows::Strategy]),
}

/// Strategies in order of cost, over both systems.
const STEPS: [Step; 5] = [
    Step::Linux(&[linux::Strategy::Registers, linux::Strategy::Note, linux::Strategy::Trampoline]),
    Step::Windows(&[windows::Strategy::Registers, windows::Strategy::DumpHeader, windows::Strategy::LowStub]),
    Step::Linux(&[linux::Strategy::VmCoreInfo, linux::Strategy::Kallsyms]),
    Step::Windows(&[windows::Strategy::PageTables, windows::Strategy::PhysicalScan]),
    Step::Linux(&[linux::Strategy::Tasks]),
];

/// What the user's files say.
#[derive(Default)]
struct Known {
    linux: linux::Options,
    windows: windows::Options,
    is_linux: bool,
    is_windows: bool,
}

impl Known {
    fn add(&mut self, path: &Path) -> Result<(), Cause> {
        if path.metadata()?.is_dir() {
            self.windows.store = self.windows.store.clone().with_directory(path);
        } else if is_of_windows(path)? {
            self.windows = std::mem::take(&mut self.windows).file(SymbolFile::open(path)?);
            self.is_windows = true;
        } else {
            let file = symbol_files::open(path)?;
            self.linux.symbols = file.symbols.map(Arc::new).or(self.linux.symbols.take());
            self.linux.types = file.types.or(self.linux.types.take());
            self.is_linux = true;
        }
        Ok(())
    }
}

/// Whether a file describes a Windows kernel: a program database, or a Volatility symbol file that was made of one.
fn is_of_windows(path: &Path) -> std::io::Result<bool> {
    const PDB: &[u8] = b"Microsoft C/C++ ";
    let mut start = Vec::new();
    File::open(path)?.take(PDB.len() as u64).read_to_end(&mut start)?;
    let packed = start.starts_with(b"\xfd7zXZ\0") || start.trim_ascii_start().starts_with(b"{");
    Ok(start == PDB || packed && Isf::open(path).is_ok_and(|isf| isf.pdb().is_some()))
}

/// Finds the system. A string says what each was missing.
pub(crate) fn find<'v>(vmi: &'v Vmi<AnyDriver>, symbols: &[PathBuf]) -> Result<System<'v>, String> {
    let mut known = Known::default();
    for path in symbols {
        known.add(path).map_err(|error| format!("{}: {}", path.display(), with_causes(&*error)))?;
    }
    // The header of a Windows dump says what the machine was.
    let is_dump = vmi.machine().notes.iter().any(|note| matches!(note, Note::WindowsDump(_)));
    let first = is_dump.then_some(Step::Windows(&windows::Strategy::ALL));
    let (mut of_linux, mut of_windows) = (None, None);
    for step in first.into_iter().chain(STEPS) {
        match step {
            Step::Linux(strategies) if known.is_linux || !known.is_windows => {
                let options = linux::Options { strategies: strategies.to_vec(), ..known.linux.clone() };
                let found = linux::find_with(vmi, &options).map_err(LinuxError::from);
                match found.and_then(|kernel| Linux::with_kernel(vmi, kernel)) {
                    Ok(linux) => return Ok(Box::new(linux)),
                    Err(error) => of_linux = Some(later_linux(of_linux, error)),
                }
            }
            Step::Windows(strategies) if known.is_windows || !known.is_linux => {
                let options = windows::Options { strategies: strategies.to_vec(), ..known.windows.clone() };
                let found = windows::find_with(vmi, &options).map_err(WindowsError::from);
                match found.and_then(|kernel| Windows::with_kernel(vmi, kernel)) {
                    Ok(windows) => return Ok(Box::new(windows)),
                    Err(error) => of_windows = Some(later_windows(of_windows, error)),
                }
            }
            _ => {}
        }
    }
    let mut message = format!("{}: no operating system was recognised", vmi.machine().name);
    if let Some(error) = of_linux {
        message.push_str(&format!("\nLinux: {}", with_causes(&error)));
    }
    if let Some(error) = of_windows {
        message.push_str(&format!("\nWindows: {}", with_causes(&error)));
    }
    Err(message)
}

/// What two steps missed: both, or a kernel that was found and could not be read.
fn later_linux(earlier: Option<LinuxError>, error: LinuxError) -> LinuxError {
    match (earlier, error) {
        (Some(LinuxError::Discover(mut before)), LinuxError::Discover(now)) => {
            before.attempts.extend(now.attempts);
            LinuxError::Discover(before)
        }
        (Some(earlier), LinuxError::Discover(_)) => earlier,
        (_, error) => error,
    }
}

/// As [`later_linux`].
fn later_windows(earlier: Option<WindowsError>, error: WindowsError) -> WindowsError {
    match (earlier, error) {
        (Some(WindowsError::Discover(mut before)), WindowsError::Discover(now)) => {
            before.attempts.extend(now.attempts);
            WindowsError::Discover(before)
        }
        (Some(earlier), WindowsError::Discover(_)) => earlier,
        (_, error) => error,
    }
}
