//! BTF, the compact type description that a kernel carries in its own memory (`CONFIG_DEBUG_INFO_BTF`).
//!
//! The format is that of the kernel's `Documentation/bpf/btf.rst` and `include/uapi/linux/btf.h`: a header, a run of type records
//! whose numbers are their positions, and a run of names. [`Btf::parse`] walks the records once and keeps only where each of them is
//! and an index of names; a type is decoded when somebody asks for it, straight from the bytes.
//!
//! A module's BTF continues the kernel's: its type numbers and name offsets begin where the kernel's end ([`Btf::parse_split`]).
//! Since 6.11 (`bpf: support relocating split BTF`) a module file may also carry `.BTF.base`, a digest of the kernel types it was built
//! against. The kernel rewrites such a module's BTF to its own numbers when it loads the module, so what is found in memory is always
//! plain split BTF; that of the file is read by parsing `.BTF.base` as the base.

mod decode;
mod error;
mod header;
pub(crate) mod names;
mod record;
mod scan;
#[cfg(test)]
mod tests;

use core::fmt;
use core::ops::Range;
use std::sync::Arc;

use vmi_core::{ErrorKind, Result, Type, TypeId, TypeSource};
use zerocopy::FromBytes;

pub use self::decode::Variable;
pub use self::error::BtfError;
pub use self::scan::{Candidate, MAX_LEN, find_headers};

use self::header::Header;
use self::names::Names;
use self::record::{Kind, Layouts, Record};

/// Longest name that is believed. The kernel's own limit is `KSYM_NAME_LEN`, 512 bytes since 6.1.
const MAX_NAME: usize = 512;

/// The types of a kernel, or of one module on top of them.
pub struct Btf {
    bytes: Arc<[u8]>,
    types: Range<usize>,
    strings: Range<usize>,
    /// Where each record starts, from the start of the types; the first is number `first_id`.
    records: Vec<u32>,
    first_id: u32,
    /// Name offset of the first byte of `strings`.
    first_name: u32,
    names: Names,
    /// Whether enumerations say that they are signed, as since 6.0.
    marks_signed: bool,
    base: Option<Arc<Btf>>,
    pointer_size: u64,
    origin: String,
}

impl Btf {
    /// The types in `bytes`, which begin with the header and may go on after the last section.
    ///
    /// # Errors
    /// [`BtfError`] if the bytes are not BTF, are cut short, or hold a record that cannot be.
    pub fn parse(bytes: impl Into<Arc<[u8]>>, pointer_size: u64) -> Result<Self, BtfError> {
        Self::build(bytes.into(), None, pointer_size)
    }

    /// The types of a module, which continue those of the kernel.
    ///
    /// # Errors
    /// As [`Btf::parse`]; [`BtfError::Name`] if names lie beyond both name sections, as with the BTF of another kernel's module.
    pub fn parse_split(base: Arc<Btf>, bytes: impl Into<Arc<[u8]>>) -> Result<Self, BtfError> {
        let pointer_size = base.pointer_size;
        Self::build(bytes.into(), Some(base), pointer_size)
    }

    /// Says where the bytes came from, for messages; `BTF` unless told.
    #[must_use]
    pub fn with_origin(mut self, origin: impl Into<String>) -> Self {
        self.origin = origin.into();
        self
    }

    /// One more than the highest type number.
    pub fn end_id(&self) -> u32 {
        self.first_id.saturating_add(self.records.len() as u32)
    }

    /// Length in bytes of the header and all sections.
    pub fn byte_len(&self) -> usize {
        self.types.end.max(self.strings.end)
    }

    /// The variables of all sections, in the order of their sections.
    pub fn variables(&self) -> impl Iterator<Item = Result<Variable<'_>>> {
        (self.first_id..self.end_id()).flat_map(|id| self.section_variables(id))
    }

    fn build(bytes: Arc<[u8]>, base: Option<Arc<Btf>>, pointer_size: u64) -> Result<Self, BtfError> {
        let header = Header::parse(&bytes)?;
        let (types, strings, layouts) = header.sections(bytes.len())?;
        let names = bytes.get(strings.clone()).unwrap_or_default();
        // The kernel's own names begin with the empty one; a module's begin anywhere, for the empty one is the kernel's.
        if names.last().is_some_and(|&last| last != 0) || (base.is_none() && names.first() != Some(&0)) {
            return Err(BtfError::Strings);
        }
        let (first_id, first_name) = match &base {
            Some(base) => (base.end_id(), base.first_name.saturating_add(base.strings.len() as u32)),
            None => (1, 0),
        };
        let layouts = Layouts::parse(layouts.and_then(|range| bytes.get(range)));
        let marks_signed = base.as_ref().is_some_and(|base| base.marks_signed);
        let mut btf = Self {
            types,
            strings,
            records: Vec::new(),
            first_id,
            first_name,
            names: Names::default(),
            marks_signed,
            base,
            pointer_size,
            origin: "BTF".to_owned(),
            bytes,
        };
        btf.index(&layouts)?;
        Ok(btf)
    }

    /// The one pass over all records: where they start, and the names that can be asked for.
    fn index(&mut self, layouts: &Layouts) -> Result<(), BtfError> {
        let section = self.type_section();
        // 28 bytes is the mean of real kernels: the vector seldom grows, and never beyond a third of the section.
        let mut records = Vec::with_capacity(section.len() / 28);
        let mut names = Names::default();
        let mut marks_signed = self.marks_signed;
        let mut rest = section;
        let mut id = self.first_id;
        while !rest.is_empty() {
            let at = section.len().saturating_sub(rest.len());
            let cut = BtfError::Cut { id, at };
            let Ok((record, after)) = record::Head::ref_from_prefix(rest) else { return Err(cut) };
            let Some(extra) = layouts.extra(record) else { return Err(BtfError::UnknownKind { kind: record.kind().0, id }) };
            rest = after.get(extra..).ok_or(cut)?;
            if record.kind().has_index() && record.name.get() != 0 {
                let name = self.name(record.name.get()).ok_or(BtfError::Name { id, at: record.name.get() })?;
                names.push(name, id);
            }
            marks_signed |= record.kind().is_enumeration() && (record.flag() || record.kind() == Kind::ENUM64);
            records.push(u32::try_from(at).map_err(|_| BtfError::TooLong)?);
            id = id.checked_add(1).ok_or(BtfError::TooLong)?;
        }
        names.finish();
        self.records = records;
        self.names = names;
        self.marks_signed = marks_signed;
        Ok(())
    }

    fn type_section(&self) -> &[u8] {
        self.bytes.get(self.types.clone()).unwrap_or_default()
    }

    /// The record of this number, the kernel's included.
    fn record(&self, id: u32) -> Option<Record<'_>> {
        let Some(index) = id.checked_sub(self.first_id) else { return self.base.as_ref()?.record(id) };
        let at = *self.records.get(index as usize)?;
        Record::parse(self.type_section().get(at as usize..)?)
    }

    /// The name at this offset, the kernel's names included; `None` if there is none or it is longer than any name can be.
    fn name(&self, at: u32) -> Option<&[u8]> {
        let Some(start) = at.checked_sub(self.first_name) else { return self.base.as_ref()?.name(at) };
        let names = self.bytes.get(self.strings.clone())?.get(start as usize..)?;
        let names = names.get(..MAX_NAME).unwrap_or(names);
        names.get(..memchr::memchr(0, names)?)
    }

    /// The names of this kind, each once.
    fn tags(&self, kind: fn(Kind) -> bool) -> Box<dyn Iterator<Item = String> + '_> {
        let own = self.names.ids().filter_map(move |id| {
            let record = self.record(id)?;
            let name = core::str::from_utf8(self.name(record.name())?).ok()?;
            (kind(record.kind()) && self.lookup(name, kind) == Some(TypeId(id))).then(|| name.to_owned())
        });
        match &self.base {
            Some(base) => Box::new(own.chain(base.tags(kind).filter(move |name| {
                // A name that the module has too was counted with it.
                self.lookup(name, kind).is_some_and(|id| id.0 < self.first_id)
            }))),
            None => Box::new(own),
        }
    }

    /// The lowest number of this name and kind; a module's own types come before the kernel's.
    fn lookup(&self, name: &str, kind: impl Fn(Kind) -> bool + Copy) -> Option<TypeId> {
        let own = self.names.all(name).find(|&id| {
            self.record(id).is_some_and(|record| kind(record.kind()) && self.name(record.name()) == Some(name.as_bytes()))
        });
        own.map(TypeId).or_else(|| self.base.as_ref()?.lookup(name, kind))
    }
}

impl TypeSource for Btf {
    /// The structure or union of this tag. Kernels hold a few tags twice (`struct irq_info` of several drivers): the one that comes
    /// first is meant. Forward declarations are not found.
    fn find(&self, name: &str) -> Option<TypeId> {
        self.lookup(name, Kind::is_structure)
    }

    fn find_enumeration(&self, name: &str) -> Option<TypeId> {
        self.lookup(name, Kind::is_enumeration)
    }

    fn get(&self, id: TypeId) -> Result<Type> {
        if id.0 == 0 {
            return Ok(Type::Void);
        }
        let broken =
            |why: String| ErrorKind::NoType { name: format!("type {}", id.0), why: format!("{}: {why}", self.origin) }.into();
        let Some(record) = self.record(id.0) else { return Err(broken("no record has this number".to_owned())) };
        self.decode(&record).map_err(|why| broken(why.to_owned()))
    }

    fn pointer_size(&self) -> u64 {
        self.pointer_size
    }

    fn origin(&self) -> String {
        self.origin.clone()
    }

    fn structures(&self) -> Box<dyn Iterator<Item = String> + '_> {
        self.tags(Kind::is_structure)
    }

    fn enumerations(&self) -> Box<dyn Iterator<Item = String> + '_> {
        self.tags(Kind::is_enumeration)
    }

    /// A kernel describes its per-CPU variables only.
    fn variable(&self, name: &str) -> Option<TypeId> {
        let id = self.lookup(name, |kind| kind == Kind::VAR)?;
        self.record(id.0)?.refers_to()
    }
}

impl fmt::Debug for Btf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = self.first_id..self.end_id();
        f.debug_struct("Btf").field("origin", &self.origin).field("ids", &ids).finish_non_exhaustive()
    }
}
