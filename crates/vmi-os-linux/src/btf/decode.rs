//! From a record to a type.

use vmi_core::{ErrorKind, Member, Result, Structure, Type, TypeId};

use super::Btf;
use super::record::{Kind, RawMember, RawValue, RawValue64, RawVariable, Record};

/// More members or values than any kernel has; with the limit of names it bounds what one hostile record can make us allocate.
const MAX_ELEMENTS: usize = 1 << 16;

/// A variable of a kernel section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable<'b> {
    /// Name, which is also that of its symbol.
    pub name: &'b str,
    /// Section: `.data..percpu`.
    pub section: &'b str,
    /// Offset in bytes from the start of the section.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
    /// Type.
    pub ty: TypeId,
}

type Broken = &'static str;

const SHORT: Broken = "its record is cut short";

impl Btf {
    pub(super) fn decode(&self, record: &Record<'_>) -> Result<Type, Broken> {
        if (record.kind().is_structure() || record.kind().is_enumeration()) && record.count() > MAX_ELEMENTS {
            return Err("it has more than 65536 members");
        }
        Ok(match record.kind() {
            Kind::INT => Type::Number {
                name: self.text(record.name())?,
                size: record.size(),
                signed: record.integer().ok_or(SHORT)?.signed,
            },
            Kind::FLOAT => Type::Number { name: self.text(record.name())?, size: record.size(), signed: true },
            Kind::PTR => Type::Pointer { target: record.target() },
            Kind::ARRAY => {
                let array = record.array().ok_or(SHORT)?;
                Type::Array { element: TypeId(array.element.get()), count: array.count.get().into() }
            }
            Kind::STRUCT | Kind::UNION => self.structure_of(record)?,
            Kind::ENUM => {
                let values = record.elements::<RawValue>().ok_or(SHORT)?.iter();
                // Before the flag existed (6.0, `bpf: Add btf enum64 support`) all values were signed.
                let signed = record.flag() || !self.marks_signed;
                self.enumeration(record, values.map(|value| (value.name.get(), widen(value.value.get(), signed))))?
            }
            Kind::ENUM64 => {
                let values = record.elements::<RawValue64>().ok_or(SHORT)?.iter();
                let joined = |value: &RawValue64| (u64::from(value.high.get()) << 32 | u64::from(value.low.get())) as i64;
                self.enumeration(record, values.map(|value| (value.name.get(), joined(value))))?
            }
            Kind::TYPEDEF | Kind::VOLATILE | Kind::CONST | Kind::RESTRICT | Kind::TYPE_TAG | Kind::VAR => {
                Type::Alias { target: record.target() }
            }
            Kind::FUNC | Kind::FUNC_PROTO => Type::Function,
            // Forward declarations (of types that this kernel never completes), sections, tags, and kinds of the future.
            _ => Type::Void,
        })
    }

    fn structure_of(&self, record: &Record<'_>) -> Result<Type, Broken> {
        let members = record.elements::<RawMember>().ok_or(SHORT)?;
        let members = members.iter().map(|member| self.member_of(record, member)).collect::<Result<_, Broken>>()?;
        let (name, size) = (self.text(record.name())?, record.size());
        Ok(Type::Structure(Structure { name, size, union: record.kind() == Kind::UNION, members }))
    }

    fn member_of(&self, structure: &Record<'_>, member: &RawMember) -> Result<Member, Broken> {
        let offset = member.offset.get();
        let (mut bit_offset, mut bit_width) = (u64::from(offset), None);
        if structure.flag() {
            bit_offset = u64::from(offset & 0x00ff_ffff);
            bit_width = Some(offset >> 24).filter(|&width| width > 0);
        } else if let Some(target) = self.record(member.ty.get()).filter(|target| target.kind() == Kind::INT) {
            // Before kind_flag (4.21, `btf: support kind_flag`), an integer type of fewer bits than bytes stood for a bitfield.
            let integer = target.integer().ok_or(SHORT)?;
            if u64::from(integer.bits) < target.size().saturating_mul(8) || integer.offset > 0 {
                bit_offset = bit_offset.saturating_add(integer.offset.into());
                bit_width = Some(integer.bits);
            }
        }
        Ok(Member { name: self.text(member.name.get())?, bit_offset, bit_width, ty: TypeId(member.ty.get()) })
    }

    fn enumeration(&self, record: &Record<'_>, values: impl Iterator<Item = (u32, i64)>) -> Result<Type, Broken> {
        let values = values.map(|(name, value)| Ok((self.text(name)?, value))).collect::<Result<_, Broken>>()?;
        Ok(Type::Enumeration { name: self.text(record.name())?, size: record.size(), values })
    }

    /// The variables of the section that has this number; none if it is something else.
    pub(super) fn section_variables(&self, id: u32) -> impl Iterator<Item = Result<Variable<'_>>> {
        let section = self.record(id).filter(|record| record.kind() == Kind::DATASEC);
        let variables = section.and_then(|section| section.elements::<RawVariable>()).unwrap_or_default();
        variables.iter().map(move |raw| {
            let found = section.and_then(|section| self.variable_of(&section, raw));
            found.ok_or_else(|| {
                let why = format!("{}: a variable of this section is broken", self.origin);
                ErrorKind::NoType { name: format!("type {id}"), why }.into()
            })
        })
    }

    fn variable_of(&self, section: &Record<'_>, raw: &RawVariable) -> Option<Variable<'_>> {
        let variable = self.record(raw.ty.get())?;
        Some(Variable {
            name: core::str::from_utf8(self.name(variable.name())?).ok()?,
            section: core::str::from_utf8(self.name(section.name())?).ok()?,
            offset: raw.offset.get(),
            size: raw.size.get(),
            ty: variable.refers_to()?,
        })
    }

    fn text(&self, at: u32) -> Result<String, Broken> {
        let name = self.name(at).ok_or("a name lies outside the names, or is longer than 511 bytes")?;
        Ok(String::from_utf8_lossy(name).into_owned())
    }
}

fn widen(value: i32, signed: bool) -> i64 {
    if signed { value.into() } else { (value as u32).into() }
}
