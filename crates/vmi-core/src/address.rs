//! Guest-physical and guest-virtual addresses.
//!
//! A bare `u64` never stands for an address in a public signature: the two kinds cannot be mixed up.

use core::fmt;
use core::str::FromStr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Size in bytes of the smallest x86 page and of a guest frame.
pub const PAGE_SIZE: u64 = 4096;

/// What [`PhysAddr`] and [`VirtAddr`] share, so that one reader serves both.
pub trait Address: Copy + Ord + fmt::Debug + fmt::Display + fmt::LowerHex + Send + Sync {
    /// The address as a number.
    fn get(self) -> u64;

    /// The address `offset` bytes further, or `None` past the end of the 64-bit range.
    fn checked_add(self, offset: u64) -> Option<Self>;

    /// An out-of-range error for a read of `len` bytes that starts here.
    fn out_of_range(self, len: usize) -> crate::Error {
        crate::ErrorKind::OutOfRange { at: self.get(), len }.into()
    }
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
        )]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The lowest address, zero.
            pub const ZERO: Self = Self(0);

            /// Wraps a number.
            pub const fn new(address: u64) -> Self {
                Self(address)
            }

            /// The address as a number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Whether the address is zero, as a null pointer is.
            pub const fn is_null(self) -> bool {
                self.0 == 0
            }

            /// The address `offset` bytes further, or `None` past the end of the 64-bit range.
            pub const fn checked_add(self, offset: u64) -> Option<Self> {
                match self.0.checked_add(offset) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// The address `offset` bytes before, or `None` below zero.
            pub const fn checked_sub(self, offset: u64) -> Option<Self> {
                match self.0.checked_sub(offset) {
                    Some(difference) => Some(Self(difference)),
                    None => None,
                }
            }

            /// The address `offset` bytes further, modulo 2^64, as the guest's own pointer arithmetic computes it.
            pub const fn wrapping_add(self, offset: u64) -> Self {
                Self(self.0.wrapping_add(offset))
            }

            /// The address `offset` bytes before, modulo 2^64: from a member to the structure that holds it.
            pub const fn wrapping_sub(self, offset: u64) -> Self {
                Self(self.0.wrapping_sub(offset))
            }

            /// Bytes from `base` to this address, or `None` if `base` is higher.
            pub const fn offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }

            /// The start of the 4 KiB page that holds this address.
            pub const fn page(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }

            /// The offset of this address in its 4 KiB page, below 4096.
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }

            /// Whether the address is a multiple of `alignment`; a zero `alignment` divides nothing but zero.
            pub const fn is_aligned(self, alignment: u64) -> bool {
                match self.0.checked_rem(alignment) {
                    Some(rest) => rest == 0,
                    None => self.0 == 0,
                }
            }
        }

        impl Address for $name {
            #[inline]
            fn get(self) -> u64 {
                self.0
            }

            #[inline]
            fn checked_add(self, offset: u64) -> Option<Self> {
                Self::checked_add(self, offset)
            }
        }

        impl From<u64> for $name {
            fn from(address: u64) -> Self {
                Self(address)
            }
        }

        impl From<$name> for u64 {
            fn from(address: $name) -> Self {
                address.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = core::num::ParseIntError;

            /// Hexadecimal with a leading `0x`, decimal without.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
                    Some(digits) => u64::from_str_radix(digits, 16).map(Self),
                    None => text.parse().map(Self),
                }
            }
        }
    };
}

address! {
    /// A guest-physical address: what the guest's page tables point at, and the key of every [`Driver`](crate::Driver).
    PhysAddr
}

address! {
    /// A guest-virtual address: meaningful only together with an [`AddressSpace`](crate::AddressSpace).
    VirtAddr
}

impl PhysAddr {
    /// The guest frame that holds this address.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> 12)
    }
}

/// A guest frame number: a guest-physical address divided by 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gfn(u64);

impl Gfn {
    /// Wraps a frame number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The frame number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The address of the frame's first byte, or `None` if it does not fit 64 bits.
    pub const fn address(self) -> Option<PhysAddr> {
        match self.0.checked_mul(PAGE_SIZE) {
            Some(address) => Some(PhysAddr(address)),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms() {
        assert_eq!("0xffff888000000000".parse(), Ok(VirtAddr::new(0xffff_8880_0000_0000)));
        assert_eq!("4096".parse(), Ok(PhysAddr::new(4096)));
        assert!("0x".parse::<PhysAddr>().is_err());
        assert_eq!(PhysAddr::new(0x1234).to_string(), "0x1234");
        assert_eq!(format!("{:016x}", VirtAddr::new(0xabc)), "0000000000000abc");
    }

    #[test]
    fn arithmetic_stops_at_the_ends() {
        assert_eq!(PhysAddr::new(u64::MAX).checked_add(1), None);
        assert_eq!(PhysAddr::ZERO.checked_sub(1), None);
        assert_eq!(VirtAddr::new(8).wrapping_sub(16), VirtAddr::new(u64::MAX - 7));
        assert_eq!(Gfn::new(u64::MAX).address(), None);
        assert!(PhysAddr::ZERO.is_aligned(0) && !PhysAddr::new(1).is_aligned(0));
    }
}
