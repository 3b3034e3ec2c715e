//! Addresses of whatever memory, as numbers and as text.

use core::fmt;

use vmi_core::{Address, PhysAddr, VirtAddr};

/// An address of a [`Memory`](crate::owned::Memory): guest-physical or virtual, whichever that memory has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AnyAddr(pub u64);

impl Address for AnyAddr {
    fn get(self) -> u64 {
        self.0
    }

    fn checked_add(self, offset: u64) -> Option<Self> {
        self.0.checked_add(offset).map(Self)
    }
}

impl fmt::Display for AnyAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::LowerHex for AnyAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

impl From<u64> for AnyAddr {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl From<PhysAddr> for AnyAddr {
    fn from(at: PhysAddr) -> Self {
        Self(at.get())
    }
}

impl From<VirtAddr> for AnyAddr {
    fn from(at: VirtAddr) -> Self {
        Self(at.get())
    }
}

/// A place in the kernel as people write it: `init_task`, `init_task+0x10`, `init_task+16`. [`Guest::address`](crate::owned::Guest::address) finds it.
///
/// ```
/// use vmi::owned::Place;
///
/// let place = Place::parse("init_task + 0x10").unwrap();
/// assert_eq!((place.symbol, place.offset), ("init_task", 16));
/// assert!(Place::parse("init_task+ten").is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place<'t> {
    /// The symbol.
    pub symbol: &'t str,
    /// Bytes behind it.
    pub offset: u64,
}

/// What stands behind the plus of a [`Place`] is no number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}`: what is behind the plus is no number")]
pub struct NoOffset {
    /// What was written.
    pub text: String,
}

impl<'t> Place<'t> {
    /// Takes text apart. The offset is decimal, or hexadecimal with a leading `0x`.
    ///
    /// # Errors
    /// [`NoOffset`] if there is a plus with no number behind it.
    pub fn parse(text: &'t str) -> Result<Self, NoOffset> {
        let Some((symbol, offset)) = text.split_once('+') else { return Ok(Self { symbol: text, offset: 0 }) };
        let offset = offset.trim();
        let number = match offset.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => offset.parse(),
        };
        let offset = number.map_err(|_| NoOffset { text: text.to_owned() })?;
        Ok(Self { symbol: symbol.trim(), offset })
    }
}
