//! Writes intermediate symbol files of Volatility 3, schema 6.2.0.
//!
//! The file is written as it is made: symbols first, then the structures that they and the roots lead to, then what these use. What it
//! is made from is a guest's: nothing here recurses or allocates as deep or as much as a guest likes.

mod names;
mod reference;
#[cfg(test)]
mod tests;

use core::fmt;
use std::io::{self, Write};

use rustc_hash::{FxHashMap, FxHashSet};
use serde::Serialize;

use self::reference::{Reference, Types};
use super::MAX_LEN;
use crate::{Symbols, TypeId, TypeSource};

/// Names of structures that are told in [`IsfSummary::incomplete`].
const TOLD: usize = 16;
/// Version of the schema that is written.
const FORMAT: &str = "6.2.0";

/// Writes an intermediate symbol file of Volatility 3.
///
/// ```
/// use vmi_core::{Isf, IsfWriter, TypeSource};
///
/// let text = br#"{"metadata": {"format": "6.2.0"}, "base_types": {}, "user_types": {"s": {"kind": "struct", "size": 4, "fields": {}}}}"#;
/// let types = Isf::parse(text)?;
/// let mut file = Vec::new();
/// IsfWriter::new(&types).write(&mut file)?;
/// assert!(Isf::parse(&file)?.find("s").is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct IsfWriter<'t> {
    sources: Vec<Source<'t>>,
    symbols: Option<(&'t Symbols, u64, u64)>,
    variables: FxHashMap<&'t str, IsfType<'t>>,
    made: FxHashMap<&'t str, IsfStructure<'t>>,
    tags: Vec<(TypeId, &'t str)>,
    banner: Option<Vec<u8>>,
}

/// Types, and which of them are wanted.
#[derive(Clone, Copy, Debug)]
struct Source<'t> {
    types: &'t dyn TypeSource,
    wanted: Wanted<'t>,
}

#[derive(Clone, Copy, Debug)]
enum Wanted<'t> {
    All,
    /// Those with a tag that no source before has.
    Further,
    Tags(&'t [&'t str]),
}

/// The type of a variable, said in the terms of the sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IsfType<'t> {
    /// The structure or union of this tag.
    Structure(&'t str),
    /// An integer by its C name as gcc writes it: `long unsigned int`.
    Number(&'t str),
    /// A pointer.
    Pointer(&'t IsfType<'t>),
    /// An array.
    Array(&'t IsfType<'t>, u64),
    /// `void`.
    Void,
}

/// A structure that no source describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsfStructure<'t> {
    /// Tag.
    pub name: &'t str,
    /// Size in bytes.
    pub size: u64,
    /// Name, offset in bytes and type of each member.
    pub members: Vec<(&'t str, u64, IsfType<'t>)>,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IsfSummary {
    /// Structures and unions, those without a tag included.
    pub structures: u64,
    /// Enumerations.
    pub enumerations: u64,
    /// Symbols.
    pub symbols: u64,
    /// Symbols whose type is told.
    pub variables: u64,
    /// Bytes.
    pub bytes: u64,
    /// How many types were written as empty, or as `void` where they are used, because their description is broken.
    pub broken: u64,
    /// What is wrong with the first of these, one sentence each.
    pub incomplete: Vec<String>,
}

/// Why a symbol file could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IsfWriteError {
    /// The file cannot be written.
    #[error("cannot write the symbol file: {0}")]
    Io(#[source] io::Error),
    /// The symbols and types take more room than those of any real kernel.
    #[error("the symbol file would have more than {limit} bytes; those of real kernels have some tens of millions")]
    TooLong {
        /// The bound in bytes.
        limit: u64,
    },
    /// The names alone take more memory than those of any real kernel.
    #[error("the types have more than {limit} bytes of names; those of real kernels have some hundred thousand")]
    Names {
        /// The bound in bytes.
        limit: usize,
    },
}

impl<'t> IsfWriter<'t> {
    /// A file with all structures and enumerations of `types`.
    pub fn new(types: &'t dyn TypeSource) -> Self {
        Self {
            sources: vec![Source { types, wanted: Wanted::All }],
            symbols: None,
            variables: FxHashMap::default(),
            made: FxHashMap::default(),
            tags: Vec::new(),
            banner: None,
        }
    }

    /// Only the structures of these tags, and all that they and the variables lead to. Tags that there are none of are left out.
    #[must_use]
    pub fn only(mut self, tags: &'t [&'t str]) -> Self {
        if let Some(source) = self.sources.first_mut() {
            source.wanted = Wanted::Tags(tags);
        }
        self
    }

    /// Further structures from another source, such as the types of a module: those whose tag no source before has, and what they lead to. A
    /// structure that two sources describe alike is written once; of two that differ, that of the first source keeps the tag.
    #[must_use]
    pub fn further(mut self, types: &'t dyn TypeSource) -> Self {
        self.sources.push(Source { types, wanted: Wanted::Further });
        self
    }

    /// The symbols of the kernel itself (those of modules are left out), moved back by `slide` to where they were linked. Addresses below
    /// `from` stay: offsets of per-CPU variables and absolute values. Of several symbols of a name the lowest is written.
    #[must_use]
    pub fn symbols(mut self, symbols: &'t Symbols, slide: u64, from: u64) -> Self {
        self.symbols = Some((symbols, slide, from));
        self
    }

    /// The type of a variable that its source does not tell ([`TypeSource::variable`]). A structure that no source has makes it `void`, as
    /// symbols without a type are.
    #[must_use]
    pub fn variable(mut self, name: &'t str, ty: IsfType<'t>) -> Self {
        self.variables.insert(name, ty);
        self
    }

    /// A structure that no source describes, for the types of variables. It is not written if a source has its tag.
    #[must_use]
    pub fn structure(mut self, structure: IsfStructure<'t>) -> Self {
        self.made.insert(structure.name, structure);
        self
    }

    /// The name under which a structure without a tag is written, such as that of its typedef. `ty` is its number in the first source. The name
    /// stays with those that have it already.
    #[must_use]
    pub fn tag(mut self, ty: TypeId, name: &'t str) -> Self {
        self.tags.push((ty, name));
        self
    }

    /// The bytes of the kernel's `linux_banner`, line end and terminator included: by them Volatility knows which kernel a file is for.
    #[must_use]
    pub fn linux_banner(mut self, banner: impl Into<Vec<u8>>) -> Self {
        self.banner = Some(banner.into());
        self
    }

    /// Writes the file as JSON. The caller packs it, if it is to be packed: Volatility reads `.json`, `.json.xz`, `.json.gz` and `.json.bz2`.
    ///
    /// # Errors
    /// [`IsfWriteError`]: what `to` says; or the symbols and types are beyond all measure. What is written by then is no symbol file.
    pub fn write(&self, to: impl Write) -> Result<IsfSummary, IsfWriteError> {
        let sources: Vec<_> = self.sources.iter().map(|source| source.types).collect();
        let mut types = Types::new(sources, &self.made);
        for &(ty, name) in &self.tags {
            types.give_tag(ty, name);
        }
        let mut json = Json::new(to);
        json.open_document(&Metadata::new(self.banner.is_some()))?;
        json.object("symbols")?;
        self.write_symbols(&mut json, &mut types)?;
        json.object("user_types")?;
        self.write_structures(&mut json, &mut types)?;
        json.object("enums")?;
        self.write_enumerations(&mut json, &mut types)?;
        json.object("base_types")?;
        for (name, number) in types.numbers.finish()? {
            json.entry(name, number)?;
        }
        let bytes = json.close_document()?;
        Ok(IsfSummary { bytes, ..types.summary })
    }

    fn write_symbols<'s, W: Write>(&'s self, json: &mut Json<W>, types: &mut Types<'s>) -> Result<(), IsfWriteError> {
        let Some((symbols, slide, from)) = self.symbols else { return Ok(()) };
        let mut seen = FxHashSet::default();
        // Ascending by address: the first of a name is the lowest.
        for symbol in symbols.iter().filter(|symbol| symbol.module.is_none()) {
            if !seen.insert(symbol.name) {
                continue;
            }
            let ty = match types.variable(symbol.name)? {
                None => self.variables.get(symbol.name).map(|ty| types.declared(ty)).transpose()?.flatten(),
                known => known,
            };
            types.summary.symbols = types.summary.symbols.saturating_add(1);
            types.summary.variables = types.summary.variables.saturating_add(ty.is_some().into());
            let address = symbol.address.get();
            let address = if address < from { address } else { address.wrapping_sub(slide) };
            let constant_data = self.banner.as_deref().filter(|_| symbol.name == "linux_banner").map(base64);
            json.entry(symbol.name, &WrittenSymbol { address, ty: ty.unwrap_or_else(Reference::void), constant_data })?;
        }
        Ok(())
    }

    fn write_structures<W: Write>(&self, json: &mut Json<W>, types: &mut Types<'_>) -> Result<(), IsfWriteError> {
        types.write_structures(json)?;
        for (index, source) in self.sources.iter().enumerate() {
            let before = self.sources.get(..index).unwrap_or_default();
            match source.wanted {
                Wanted::Tags(tags) => {
                    for tag in tags {
                        types.root(index, tag)?;
                        types.write_structures(json)?;
                    }
                }
                wanted => {
                    for tag in source.types.structures() {
                        let further = !before.iter().any(|source| source.types.find(&tag).is_some());
                        if further || matches!(wanted, Wanted::All) {
                            types.root(index, &tag)?;
                            types.write_structures(json)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn write_enumerations<W: Write>(&self, json: &mut Json<W>, types: &mut Types<'_>) -> Result<(), IsfWriteError> {
        types.write_enumerations(json)?;
        for (index, source) in self.sources.iter().enumerate() {
            if !matches!(source.wanted, Wanted::All) {
                continue;
            }
            for tag in source.types.enumerations() {
                types.root_enumeration(index, &tag)?;
                types.write_enumerations(json)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for IsfWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("IsfWriter");
        debug.field("sources", &self.sources.len()).field("variables", &self.variables.len()).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Metadata {
    format: &'static str,
    producer: Producer,
    #[serde(skip_serializing_if = "Option::is_none")]
    linux: Option<Unix>,
}

#[derive(Serialize)]
struct Producer {
    name: &'static str,
    version: &'static str,
}

#[derive(Serialize)]
struct Unix {
    symbols: [(); 0],
    types: [(); 0],
}

impl Metadata {
    fn new(linux: bool) -> Self {
        let producer = Producer { name: "vmi", version: env!("CARGO_PKG_VERSION") };
        Self { format: FORMAT, producer, linux: linux.then_some(Unix { symbols: [], types: [] }) }
    }
}

#[derive(Serialize)]
struct WrittenSymbol {
    address: u64,
    #[serde(rename = "type")]
    ty: Reference,
    #[serde(skip_serializing_if = "Option::is_none")]
    constant_data: Option<String>,
}

/// A document of objects, written as it is made. It is never longer than what is read.
struct Json<W> {
    to: W,
    bytes: u64,
    /// An entry, to be written at once.
    entry: Vec<u8>,
    /// Whether the next entry is the first of its object.
    first: bool,
    objects: u32,
}

impl<W: Write> Json<W> {
    fn new(to: W) -> Self {
        Self { to, bytes: 0, entry: Vec::new(), first: true, objects: 0 }
    }

    fn open_document(&mut self, metadata: &Metadata) -> Result<(), IsfWriteError> {
        self.entry.push(b'{');
        self.entry("metadata", metadata)
    }

    /// What follows are the entries of the object of this name; it ends that before.
    fn object(&mut self, name: &str) -> Result<(), IsfWriteError> {
        self.entry.extend_from_slice(if self.objects == 0 { b",\n" } else { b"},\n" });
        self.objects = self.objects.saturating_add(1);
        self.json(name)?;
        self.entry.extend_from_slice(b": {");
        self.first = true;
        Ok(())
    }

    fn entry(&mut self, name: &str, value: &impl Serialize) -> Result<(), IsfWriteError> {
        if !core::mem::take(&mut self.first) {
            self.entry.extend_from_slice(b",\n");
        }
        self.json(name)?;
        self.entry.extend_from_slice(b": ");
        self.json(value)?;
        self.write_out()
    }

    fn close_document(mut self) -> Result<u64, IsfWriteError> {
        self.entry.extend_from_slice(b"}}\n");
        self.write_out()?;
        self.to.flush().map_err(IsfWriteError::Io)?;
        Ok(self.bytes)
    }

    fn json(&mut self, value: &(impl Serialize + ?Sized)) -> Result<(), IsfWriteError> {
        serde_json::to_writer(&mut self.entry, value).map_err(|error| IsfWriteError::Io(error.into()))
    }

    fn write_out(&mut self) -> Result<(), IsfWriteError> {
        self.bytes = self.bytes.saturating_add(self.entry.len() as u64);
        if self.bytes > MAX_LEN {
            return Err(IsfWriteError::TooLong { limit: MAX_LEN });
        }
        self.to.write_all(&self.entry).map_err(IsfWriteError::Io)?;
        self.entry.clear();
        Ok(())
    }
}

/// `bytes` in base 64 with the standard alphabet.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().chain([0; 2].iter()).take(3).fold(0u32, |bits, &byte| bits << 8 | u32::from(byte));
        for (index, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let digit = ALPHABET.get((bits >> shift & 63) as usize).filter(|_| index <= group.len());
            text.push(char::from(*digit.unwrap_or(&b'=')));
        }
    }
    text
}
