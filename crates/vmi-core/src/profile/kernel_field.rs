//! Where the members of a kernel's structures are, resolved once at attach.

use crate::{ErrorKind, Field, Result, TypeSource, VirtAddr};

/// A member of a structure (or a structure as a whole, at offset zero): its place, or its name for the error.
#[derive(Clone, Copy, Debug)]
pub struct KernelField {
    name: &'static str,
    field: Option<Field>,
}

impl KernelField {
    /// The first of `paths` that `structure` has; the structure itself if there are none.
    pub fn resolve(types: &dyn TypeSource, name: &'static str, structure: &str, paths: &[&str]) -> Self {
        let whole = || {
            let ty = types.find(structure)?;
            Some(Field { offset: 0, size: types.size_of(ty).ok()?, bits: None, ty })
        };
        let field = match paths {
            [] => whole(),
            _ => paths.iter().find_map(|path| types.field(structure, path).ok()),
        };
        Self { name, field }
    }

    /// Whether this kernel has the member.
    pub fn exists(self) -> bool {
        self.field.is_some()
    }

    /// Offset in bytes from the start of the structure.
    #[inline]
    pub fn offset(self) -> Result<u64> {
        match self.field {
            Some(field) => Ok(field.offset),
            None => Err(self.missing()),
        }
    }

    /// Size in bytes.
    pub fn size(self) -> Result<u64> {
        Ok(self.field.ok_or_else(|| self.missing())?.size)
    }

    /// Where the member of the object at `object` is.
    #[inline]
    pub fn of(self, object: VirtAddr) -> Result<VirtAddr> {
        Ok(object.wrapping_add(self.offset()?))
    }

    /// The object whose member is at `member`.
    #[inline]
    pub fn owner(self, member: VirtAddr) -> Result<VirtAddr> {
        Ok(member.wrapping_sub(self.offset()?))
    }

    /// The value of a bitfield in the byte that was read at its offset; other members are that byte.
    pub fn bits(self, byte: u8) -> u8 {
        let Some((lowest, width)) = self.field.and_then(|field| field.bits) else { return byte };
        let mask = 1u8.checked_shl(width).map_or(u8::MAX, |above| above.wrapping_sub(1));
        byte.wrapping_shr(lowest) & mask
    }

    /// The value of the member in the little-endian number `bytes` that was read at its offset: of a bitfield its bits, of any other number the
    /// bytes that are its own. Members of more than 8 bytes are cut off.
    ///
    /// # Errors
    /// [`ErrorKind::NoType`] if there is no such member, or nothing but its place is known.
    pub fn number(self, bytes: u64) -> Result<u64> {
        let field = self.field.filter(|field| field.size != 0).ok_or_else(|| self.missing())?;
        let (lowest, width) = field.bits.unwrap_or((0, u32::try_from(field.size.saturating_mul(8)).unwrap_or(u32::MAX)));
        let mask = 1u64.checked_shl(width).map_or(u64::MAX, |above| above.wrapping_sub(1));
        Ok(bytes.checked_shr(lowest).unwrap_or(0) & mask)
    }

    #[cold]
    fn missing(self) -> crate::Error {
        let why = "the type information of this guest does not describe it; \
                   debug information or a symbol file of the same kernel would";
        ErrorKind::NoType { name: self.name.to_owned(), why: why.to_owned() }.into()
    }
}

/// Declares a structure `Layout` with the [`KernelField`](crate::KernelField)s of all kernel structures that a crate reads, and `Layout::new(types)`.
///
/// Each group is a kernel structure. Its members are named as in the structure, or `name: "path" | "path in other releases"`; `whole`
/// is the structure itself, for its size.
#[macro_export]
macro_rules! kernel_layout {
    ($($(#[$doc:meta])* $group:ident: $layout:ident = $structure:literal { $($member:ident $(: $($path:literal)|+)?,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug)]
            pub(crate) struct $layout { $(pub(crate) $member: $crate::KernelField,)* }
        )*

        /// The members of all structures that this crate reads.
        #[derive(Clone, Debug)]
        pub(crate) struct Layout { $(pub(crate) $group: $layout,)* }

        impl Layout {
            pub(crate) fn new(types: &dyn $crate::TypeSource) -> Self {
                Self {
                    $($group: $layout {
                        $($member: $crate::KernelField::resolve(
                            types,
                            $crate::kernel_layout!(@name $structure $(, $($path),+)?),
                            $structure,
                            &[$($($path),+)?],
                        ),)*
                    },)*
                }
            }
        }
    };
    (@name $structure:literal) => { concat!("struct ", $structure) };
    (@name $structure:literal, $first:literal $(, $other:literal)*) => { concat!($structure, ".", $first) };
}
