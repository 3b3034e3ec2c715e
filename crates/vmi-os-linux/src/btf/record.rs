//! Type records: `struct btf_type` and what follows it.

use vmi_core::TypeId;
use zerocopy::little_endian::{I32, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// What a record describes: `BTF_KIND_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind(pub(super) u8);

impl Kind {
    pub(super) const INT: Self = Self(1);
    pub(super) const PTR: Self = Self(2);
    pub(super) const ARRAY: Self = Self(3);
    pub(super) const STRUCT: Self = Self(4);
    pub(super) const UNION: Self = Self(5);
    pub(super) const ENUM: Self = Self(6);
    pub(super) const FWD: Self = Self(7);
    pub(super) const TYPEDEF: Self = Self(8);
    pub(super) const VOLATILE: Self = Self(9);
    pub(super) const CONST: Self = Self(10);
    pub(super) const RESTRICT: Self = Self(11);
    pub(super) const FUNC: Self = Self(12);
    pub(super) const FUNC_PROTO: Self = Self(13);
    pub(super) const VAR: Self = Self(14);
    pub(super) const DATASEC: Self = Self(15);
    pub(super) const FLOAT: Self = Self(16);
    pub(super) const DECL_TAG: Self = Self(17);
    pub(super) const TYPE_TAG: Self = Self(18);
    pub(super) const ENUM64: Self = Self(19);

    pub(super) fn is_structure(self) -> bool {
        matches!(self, Self::STRUCT | Self::UNION)
    }

    pub(super) fn is_enumeration(self) -> bool {
        matches!(self, Self::ENUM | Self::ENUM64)
    }

    /// Whether types of this kind can be found by name.
    pub(super) fn has_index(self) -> bool {
        self.is_structure() || self.is_enumeration() || self == Self::VAR
    }
}

/// `struct btf_type`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Head {
    /// Offset of the name; 0 if there is none.
    pub(super) name: U32,
    info: U32,
    /// Size in bytes, or number of the type that is meant, by kind.
    size_or_type: U32,
}

impl Head {
    /// Seven bits since 7.1 (`bpf: Extend BTF UAPI vlen, kinds to use unused bits`), five before; the other two were zero.
    pub(super) fn kind(&self) -> Kind {
        Kind((self.info.get() >> 24) as u8 & 0x7f)
    }

    /// `kind_flag`: members tell the widths of bitfields, values are signed, the forward declaration is of a union.
    pub(super) fn flag(&self) -> bool {
        self.info.get() >> 31 != 0
    }

    /// 24 bits since 7.1, 16 before; the other eight were zero.
    fn count(&self) -> usize {
        (self.info.get() & 0x00ff_ffff) as usize
    }
}

/// `struct btf_member`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawMember {
    pub(super) name: U32,
    pub(super) ty: U32,
    pub(super) offset: U32,
}

/// `struct btf_array`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawArray {
    pub(super) element: U32,
    pub(super) index: U32,
    pub(super) count: U32,
}

/// `struct btf_enum`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawValue {
    pub(super) name: U32,
    pub(super) value: I32,
}

/// `struct btf_enum64`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawValue64 {
    pub(super) name: U32,
    pub(super) low: U32,
    pub(super) high: U32,
}

/// `struct btf_var_secinfo`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawVariable {
    pub(super) ty: U32,
    pub(super) offset: U32,
    pub(super) size: U32,
}

/// A record and the bytes behind its head, up to the end of the section.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'b> {
    head: &'b Head,
    rest: &'b [u8],
}

impl<'b> Record<'b> {
    pub(super) fn parse(bytes: &'b [u8]) -> Option<Self> {
        let (head, rest) = Head::ref_from_prefix(bytes).ok()?;
        Some(Self { head, rest })
    }

    pub(super) fn kind(&self) -> Kind {
        self.head.kind()
    }

    pub(super) fn name(&self) -> u32 {
        self.head.name.get()
    }

    /// Elements that follow: members, values, parameters.
    pub(super) fn count(&self) -> usize {
        self.head.count()
    }

    /// As [`Head::flag`].
    pub(super) fn flag(&self) -> bool {
        self.head.flag()
    }

    pub(super) fn size(&self) -> u64 {
        self.head.size_or_type.get().into()
    }

    pub(super) fn target(&self) -> TypeId {
        TypeId(self.head.size_or_type.get())
    }

    /// The type of a variable.
    pub(super) fn refers_to(&self) -> Option<TypeId> {
        (self.kind() == Kind::VAR).then(|| self.target())
    }

    /// The number that follows the head of an integer: encoding, offset and width in bits.
    pub(super) fn integer(&self) -> Option<Integer> {
        let (raw, _) = U32::ref_from_prefix(self.rest).ok()?;
        let [bits, _, offset, encoding] = raw.get().to_le_bytes();
        Some(Integer { bits: bits.into(), offset: offset.into(), signed: encoding & 1 != 0 })
    }

    pub(super) fn array(&self) -> Option<&'b RawArray> {
        Some(RawArray::ref_from_prefix(self.rest).ok()?.0)
    }

    /// The elements that follow the head.
    pub(super) fn elements<T: FromBytes + Immutable + KnownLayout + Unaligned>(&self) -> Option<&'b [T]> {
        Some(<[T]>::ref_from_prefix_with_elems(self.rest, self.count()).ok()?.0)
    }
}

/// What follows the head of an integer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Integer {
    pub(super) bits: u32,
    /// Where its lowest bit is in the bytes it occupies.
    pub(super) offset: u32,
    pub(super) signed: bool,
}

/// How long records are.
#[derive(Debug)]
pub(super) struct Layouts([Option<Layout>; 128]);

/// `struct btf_layout` of 7.1: bytes after the head, once and for each element.
#[derive(Clone, Copy, Debug)]
struct Layout {
    once: u8,
    each: u8,
}

impl Layouts {
    /// The sizes that are known, and for kinds unknown here what the BTF's own layout section says: four bytes a kind, from kind 0 on.
    pub(super) fn parse(section: Option<&[u8]>) -> Self {
        let mut layouts = [None; 128];
        let own = section.unwrap_or_default().chunks_exact(4);
        let sizes = own.map(|layout| match *layout {
            [once, each, ..] => Some(Layout { once, each }),
            _ => None,
        });
        for (layout, size) in layouts.iter_mut().zip(sizes) {
            *layout = size;
        }
        for (kind, layout) in (0..).zip(&mut layouts) {
            *layout = known(Kind(kind)).or(*layout);
        }
        Self(layouts)
    }

    /// Bytes behind the head of this record; `None` for an unknown kind.
    pub(super) fn extra(&self, head: &Head) -> Option<usize> {
        let layout = (*self.0.get(usize::from(head.kind().0))?)?;
        let elements = usize::from(layout.each).saturating_mul(head.count());
        Some(elements.saturating_add(layout.once.into()))
    }
}

const fn known(kind: Kind) -> Option<Layout> {
    let (once, each) = match kind {
        Kind::INT | Kind::VAR | Kind::DECL_TAG => (4, 0),
        Kind::ARRAY => (12, 0),
        Kind::STRUCT | Kind::UNION | Kind::DATASEC | Kind::ENUM64 => (0, 12),
        Kind::ENUM | Kind::FUNC_PROTO => (0, 8),
        Kind::PTR | Kind::FWD | Kind::TYPEDEF | Kind::VOLATILE | Kind::CONST | Kind::RESTRICT => (0, 0),
        Kind::FUNC | Kind::FLOAT | Kind::TYPE_TAG => (0, 0),
        _ => return None,
    };
    Some(Layout { once, each })
}
