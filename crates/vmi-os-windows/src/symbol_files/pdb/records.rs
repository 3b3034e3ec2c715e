//! Type records as they are in the file (llvm.org/docs/PDB/TpiStream.html, llvm.org/docs/PDB/CodeViewTypes.html; Microsoft's `cvinfo.h`).

/// First number that is not a basic type.
pub(super) const FIRST: u32 = 0x1000;

/// A record without its length, decoded as far as layouts need it.
#[derive(Debug)]
pub(super) enum Record<'a> {
    Modifier { of: u32 },
    Pointer { of: u32 },
    Function,
    Array { of: u32, len: u64 },
    Bitfield { of: u32, width: u8, position: u8 },
    Structure { union: bool, forward: bool, fields: u32, size: u64, name: &'a [u8], unique_name: Option<&'a [u8]> },
    Enumeration { forward: bool, of: u32, fields: u32, name: &'a [u8], unique_name: Option<&'a [u8]> },
    Fields(&'a [u8]),
    Other,
}

/// An entry of a list of fields.
#[derive(Debug)]
pub(super) enum Field<'a> {
    Member {
        ty: u32,
        offset: u64,
        name: &'a [u8],
    },
    Base {
        ty: u32,
        offset: u64,
    },
    Constant {
        value: i64,
        name: &'a [u8],
    },
    /// The list goes on in another record.
    Continued {
        at: u32,
    },
    /// Nothing that takes room in the structure: a method, a static member, a nested type.
    Other,
}

/// Properties of structures and enumerations.
const FORWARD: u16 = 1 << 7;
const HAS_UNIQUE_NAME: u16 = 1 << 9;

/// Reads from the front of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u8(&mut self) -> Option<u8> {
        self.bytes::<1>().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    /// A text up to its zero.
    fn name(&mut self) -> Option<&'a [u8]> {
        let len = self.0.iter().position(|&byte| byte == 0)?;
        let name = self.take(len)?;
        self.take(1)?;
        Some(name)
    }

    /// A number in the form of the numeric leaves: itself if it is small, else its kind and itself.
    fn number(&mut self) -> Option<i64> {
        Some(match self.u16()? {
            small @ 0..0x8000 => small.into(),
            0x8000 => i8::from_le_bytes(self.bytes()?).into(),
            0x8001 => i16::from_le_bytes(self.bytes()?).into(),
            0x8002 => self.u16()?.into(),
            0x8003 => i32::from_le_bytes(self.bytes()?).into(),
            0x8004 => self.u32()?.into(),
            // Those above the range of i64 keep their bits.
            0x8009 | 0x800a => i64::from_le_bytes(self.bytes()?),
            _ => return None,
        })
    }

    fn length(&mut self) -> Option<u64> {
        u64::try_from(self.number()?).ok()
    }
}

/// `None` if the record is cut off or contradicts itself.
pub(super) fn record(bytes: &[u8]) -> Option<Record<'_>> {
    let mut reader = Reader(bytes);
    let reader = &mut reader;
    Some(match reader.u16()? {
        0x1001 => Record::Modifier { of: reader.u32()? },
        0x1002 => Record::Pointer { of: reader.u32()? },
        0x1008 | 0x1009 => Record::Function,
        0x1203 => Record::Fields(reader.0),
        0x1205 => Record::Bitfield { of: reader.u32()?, width: reader.u8()?, position: reader.u8()? },
        0x1503 => {
            let of = reader.u32()?;
            reader.u32()?;
            Record::Array { of, len: reader.length()? }
        }
        // Classes, structures and interfaces have two more type numbers than unions.
        kind @ (0x1504 | 0x1505 | 0x1506 | 0x1519) => {
            let union = kind == 0x1506;
            reader.u16()?;
            let properties = reader.u16()?;
            let fields = reader.u32()?;
            if !union {
                reader.take(8)?;
            }
            let (size, name) = (reader.length()?, reader.name()?);
            let unique_name = if properties & HAS_UNIQUE_NAME != 0 { reader.name() } else { None };
            Record::Structure { union, forward: properties & FORWARD != 0, fields, size, name, unique_name }
        }
        0x1507 => {
            reader.u16()?;
            let properties = reader.u16()?;
            let (of, fields, name) = (reader.u32()?, reader.u32()?, reader.name()?);
            let unique_name = if properties & HAS_UNIQUE_NAME != 0 { reader.name() } else { None };
            Record::Enumeration { forward: properties & FORWARD != 0, of, fields, name, unique_name }
        }
        _ => Record::Other,
    })
}

/// The next entry of a list of fields; `None` if it is cut off or of a kind whose length is not known.
pub(super) fn field<'a>(reader: &mut Reader<'a>) -> Option<Field<'a>> {
    let field = match reader.u16()? {
        0x150d => {
            reader.u16()?;
            let (ty, offset, name) = (reader.u32()?, reader.length()?, reader.name()?);
            Field::Member { ty, offset, name }
        }
        // Base classes and interfaces.
        0x1400 | 0x151a => {
            reader.u16()?;
            Field::Base { ty: reader.u32()?, offset: reader.length()? }
        }
        0x1401 | 0x1402 => {
            reader.take(10)?;
            reader.number()?;
            reader.number()?;
            Field::Other
        }
        0x1404 => {
            reader.u16()?;
            Field::Continued { at: reader.u32()? }
        }
        0x1409 => {
            reader.take(6)?;
            Field::Other
        }
        0x1502 => {
            reader.u16()?;
            let (value, name) = (reader.number()?, reader.name()?);
            Field::Constant { value, name }
        }
        // Static members, groups of methods, nested types.
        0x150e | 0x150f | 0x1510 => {
            reader.take(6)?;
            reader.name()?;
            Field::Other
        }
        0x1511 => {
            let attributes = reader.u16()?;
            reader.u32()?;
            // Methods that introduce a virtual one have its place in the table.
            if matches!(attributes >> 2 & 7, 4 | 6) {
                reader.u32()?;
            }
            reader.name()?;
            Field::Other
        }
        _ => return None,
    };
    // Entries are filled up to four bytes by bytes that say how many are left.
    if let Some(&pad @ 0xf1..) = reader.0.first() {
        reader.take(usize::from(pad & 0xf))?;
    }
    Some(field)
}

/// A basic type by its number: what it is, its size and whether it is signed; the upper bits make a pointer of it.
pub(super) fn basic(number: u32) -> Option<(&'static str, u64, bool)> {
    Some(match number & 0xff {
        0x10 | 0x70 => ("char", 1, true),
        0x68 => ("int8_t", 1, true),
        0x20 => ("unsigned char", 1, false),
        0x69 | 0x7c => ("uint8_t", 1, false),
        0x30 => ("bool", 1, false),
        0x11 | 0x72 => ("short", 2, true),
        0x21 | 0x73 => ("unsigned short", 2, false),
        0x71 | 0x7a => ("wchar_t", 2, false),
        0x31 => ("bool16", 2, false),
        0x12 | 0x08 => ("long", 4, true),
        0x74 => ("int", 4, true),
        0x22 => ("unsigned long", 4, false),
        0x75 => ("unsigned int", 4, false),
        0x7b => ("char32_t", 4, false),
        0x32 => ("bool32", 4, false),
        0x40 => ("float", 4, true),
        0x13 | 0x76 => ("long long", 8, true),
        0x23 | 0x77 => ("unsigned long long", 8, false),
        0x33 => ("bool64", 8, false),
        0x41 => ("double", 8, true),
        0x42 => ("long double", 10, true),
        0x14 | 0x78 => ("int128", 16, true),
        0x24 | 0x79 => ("unsigned int128", 16, false),
        _ => return None,
    })
}
