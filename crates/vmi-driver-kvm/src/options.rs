//! How a guest is to be opened.

use core::fmt;
use core::str::FromStr;
use std::path::{Path, PathBuf};

use crate::gdb::{GdbAddress, GdbOptions};
use crate::qmp::QmpOptions;

/// A way to a guest's memory. Without a wish the first that works is taken, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Road {
    /// RAM that QEMU has mapped shared, mapped here too: reads are plain loads.
    Shared,
    /// The memory of QEMU's process, by a system call for each batch of reads.
    Process,
    /// The socket of a QEMU with LibVMI's patch.
    PmemAccess,
    /// The gdb stub. The guest stands still for each batch of reads.
    Gdb,
}

impl Road {
    /// All of them, best first.
    pub const ALL: [Self; 4] = [Self::Shared, Self::Process, Self::PmemAccess, Self::Gdb];

    /// Its name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Process => "process",
            Self::PmemAccess => "pmemaccess",
            Self::Gdb => "gdb",
        }
    }
}

impl fmt::Display for Road {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text names no road.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no way to guest memory is called `{0}`; there are shared, process, pmemaccess and gdb")]
pub struct UnknownRoad(String);

impl FromStr for Road {
    type Err = UnknownRoad;

    fn from_str(text: &str) -> Result<Self, UnknownRoad> {
        Self::ALL.into_iter().find(|road| road.name() == text).ok_or_else(|| UnknownRoad(text.to_owned()))
    }
}

/// What to insist on, and how long to wait. The default takes the best that works.
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) road: Option<Road>,
    pub(crate) gdb: Option<GdbAddress>,
    pub(crate) pmemaccess: Option<PathBuf>,
    pub(crate) guardian: bool,
    pub(crate) qmp: QmpOptions,
    pub(crate) gdb_options: GdbOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            road: None,
            gdb: None,
            pmemaccess: None,
            guardian: true,
            qmp: QmpOptions::default(),
            gdb_options: GdbOptions::default(),
        }
    }
}

impl Options {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes this way to memory, or none.
    #[must_use]
    pub fn road(mut self, road: Road) -> Self {
        self.road = Some(road);
        self
    }

    /// Where the guest's gdb stub is. Without it QEMU is asked, and opens one if it has none.
    #[must_use]
    pub fn gdb(mut self, address: GdbAddress) -> Self {
        self.gdb = Some(address);
        self
    }

    /// Where a patched QEMU makes its `pmemaccess` socket, or has made it. Without it, a new name in the directory for temporary files.
    #[must_use]
    pub fn pmemaccess(mut self, path: impl AsRef<Path>) -> Self {
        self.pmemaccess = Some(path.as_ref().to_owned());
        self
    }

    /// Whether a guardian process is forked once the guest is held, which lets it go on if this process dies. Default: yes. Say no in a process
    /// that may not fork; then a `SIGKILL`, an abort or any other end without unwinding leaves a paused guest paused. A pause through libvirt has no guardian: its
    /// connection is not one that another process can speak over.
    #[must_use]
    pub fn guardian(mut self, guardian: bool) -> Self {
        self.guardian = guardian;
        self
    }

    /// How long QEMU's monitor may take.
    #[must_use]
    pub fn qmp(mut self, options: QmpOptions) -> Self {
        self.qmp = options;
        self
    }

    /// How long the gdb stub may take.
    #[must_use]
    pub fn gdb_options(mut self, options: GdbOptions) -> Self {
        self.gdb_options = options;
        self
    }
}
