//! Accesses of guest-physical memory, and views: other arrangements of it, that a vCPU may run on.

use core::fmt;

use crate::{Gfn, PhysAddr, Result, VirtAddr};

/// Kinds of access to memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Accesses {
    /// Reads.
    pub read: bool,
    /// Writes.
    pub write: bool,
    /// Instruction fetches.
    pub execute: bool,
}

impl Accesses {
    /// No access at all.
    pub const NONE: Self = Self { read: false, write: false, execute: false };
    /// Reads alone.
    pub const READ: Self = Self { read: true, ..Self::NONE };
    /// Writes alone.
    pub const WRITE: Self = Self { write: true, ..Self::NONE };
    /// Instruction fetches alone.
    pub const EXECUTE: Self = Self { execute: true, ..Self::NONE };
    /// Every kind of access.
    pub const ALL: Self = Self { read: true, write: true, execute: true };

    /// What is in either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self { read: self.read | other.read, write: self.write | other.write, execute: self.execute | other.execute }
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { read: self.read & other.read, write: self.write & other.write, execute: self.execute & other.execute }
    }

    /// What is not in these.
    #[must_use]
    pub const fn inverted(self) -> Self {
        Self { read: !self.read, write: !self.write, execute: !self.execute }
    }

    /// Whether there is none.
    pub const fn is_none(self) -> bool {
        !(self.read | self.write | self.execute)
    }
}

impl fmt::Display for Accesses {
    /// `rwx` with a dash for what is missing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |on, letter| if on { letter } else { '-' };
        write!(f, "{}{}{}", flag(self.read, 'r'), flag(self.write, 'w'), flag(self.execute, 'x'))
    }
}

/// Guest-physical memory that is watched. A back end may watch whole pages only; what happens beside the range is not reported all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoryWatch {
    /// First address.
    pub at: PhysAddr,
    /// How many bytes.
    pub len: u64,
    /// The accesses that are reported.
    pub on: Accesses,
}

impl MemoryWatch {
    /// Whether an access is one that this asks for. An access is known by its first byte alone.
    pub fn is_sprung_by(&self, access: &MemoryAccess) -> bool {
        access.at.get().wrapping_sub(self.at.get()) < self.len && !self.on.and(access.kinds).is_none()
    }
}

/// A vCPU touched guest-physical memory in a way that was watched. It has not done so yet: the access is made when it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryAccess {
    /// The first byte that it touches.
    pub at: PhysAddr,
    /// The linear address, if the back end tells it.
    pub linear: Option<VirtAddr>,
    /// How; several at once where an instruction reads and writes.
    pub kinds: Accesses,
    /// What touched it, if the back end tells.
    pub origin: Option<AccessOrigin>,
    /// The view in which it happened; `None` where there are no views.
    pub view: Option<ViewId>,
}

impl MemoryAccess {
    /// An access of which nothing more is known.
    pub const fn new(at: PhysAddr, kinds: Accesses) -> Self {
        Self { at, linear: None, kinds, origin: None, view: None }
    }
}

/// What touched memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessOrigin {
    /// The walk of page tables towards the linear address.
    Walk,
    /// The access by the linear address itself.
    Linear,
}

/// A view of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId(pub u16);

impl ViewId {
    /// The guest's memory as it is.
    pub const HOST: Self = Self(0);
}

impl fmt::Display for ViewId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "view {}", self.0)
    }
}

/// A back end with views: arrangements of guest-physical memory, each with other access rights or other pages in places. Those that were made are gone when
/// the session ends, and every vCPU is back in [`ViewId::HOST`].
pub trait Views: Send {
    /// Makes a view in which all memory may be accessed as `rights` says.
    ///
    /// # Errors
    /// [`ErrorKind::Driver`](crate::ErrorKind::Driver), with the back end's reason: no more views, views not allowed for this guest.
    fn create(&mut self, rights: Accesses) -> Result<ViewId>;

    /// Destroys a view; vCPUs in it go to [`ViewId::HOST`].
    ///
    /// # Errors
    /// [`ErrorKind::Driver`](crate::ErrorKind::Driver) if there is no such view or the back end fails.
    fn destroy(&mut self, view: ViewId) -> Result<()>;

    /// Says how a page may be accessed in a view; what is not allowed is an event.
    ///
    /// # Errors
    /// [`ErrorKind::Driver`](crate::ErrorKind::Driver) if there is no such page or view, or the back end fails.
    fn allow(&mut self, view: ViewId, page: Gfn, rights: Accesses) -> Result<()>;

    /// Shows page `instead` where `page` is, in a view; `None` shows the page itself again.
    ///
    /// # Errors
    /// As [`Views::allow`].
    fn remap(&mut self, view: ViewId, page: Gfn, instead: Option<Gfn>) -> Result<()>;

    /// All vCPUs go on in this view.
    ///
    /// # Errors
    /// As [`Views::destroy`].
    fn switch(&mut self, view: ViewId) -> Result<()>;
}
