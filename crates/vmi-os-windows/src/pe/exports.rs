//! The export directory of an image.

use core::fmt;

use object::LittleEndian as LE;
use object::pe::{IMAGE_DIRECTORY_ENTRY_EXPORT, ImageExportDirectory};
use vmi_core::{ErrorKind, Memory, Result, SymbolsBuilder, VirtAddr};

use super::{DataDirectory, PeImage, corrupt};

/// Exports of an image: ordinals have 16 bits.
const MAX_EXPORTS: u32 = 1 << 16;

/// Bytes of a name. C++ names have up to some thousand.
const MAX_NAME: usize = 4096;

/// Nearly all names are shorter: reading no more keeps a listing of thousands fast.
const USUAL_NAME: usize = 96;

/// An exported function or variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its name; `None` if it is exported by ordinal only. Names that are not UTF-8 have replacement characters.
    pub name: Option<String>,
    /// Its number, the directory's base included.
    pub ordinal: u32,
    /// What it stands for.
    pub target: ExportTarget,
}

/// What an export stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportTarget {
    /// A function or variable at this offset in the image.
    Offset(u32),
    /// An export of another image, as written: `NTDLL.RtlAllocateHeap`, `NTDLL.#12`. It is not followed.
    Forwarder(String),
}

/// An export of which not all is in memory, or whose parts contradict each other.
#[derive(Debug, thiserror::Error)]
#[error("export {}: {what} cannot be read: {error}", name_or_ordinal(.name.as_deref(), *.ordinal))]
pub struct LostExport {
    /// Its name, if that much is known.
    pub name: Option<String>,
    /// Its ordinal, if that much is known.
    pub ordinal: Option<u32>,
    /// What could not be read.
    pub what: &'static str,
    /// Why.
    #[source]
    pub error: vmi_core::Error,
}

fn name_or_ordinal(name: Option<&str>, ordinal: Option<u32>) -> String {
    match (name, ordinal) {
        (Some(name), _) => format!("`{name}`"),
        (None, Some(ordinal)) => format!("#{ordinal}"),
        (None, None) => "of unknown name".to_owned(),
    }
}

/// A table of the directory as far as it is in memory: `None` for elements that are not.
struct Table<T> {
    at: VirtAddr,
    elements: Vec<Option<T>>,
}

/// The exports of an image: its tables are read, its names are not until they are asked for.
pub struct Exports<'i, M: ?Sized> {
    image: &'i PeImage<'i, M>,
    directory: DataDirectory,
    dll_name: u32,
    base: u32,
    functions: Table<u32>,
    names: Table<u32>,
    ordinals: Table<u16>,
}

impl<'i, M: Memory<Addr = VirtAddr> + ?Sized> Exports<'i, M> {
    pub(super) fn read(image: &'i PeImage<'_, M>) -> Result<Option<Self>> {
        let Some(directory) = image.headers.directory(IMAGE_DIRECTORY_ENTRY_EXPORT) else { return Ok(None) };
        let head: ImageExportDirectory = image.read(directory.offset.into(), "the export directory")?;
        let (functions, names) = (head.number_of_functions.get(LE), head.number_of_names.get(LE));
        for count in [functions, names] {
            if count > MAX_EXPORTS {
                let what = format!("the export directory of the image at {} says {count}, and an image", image.base);
                return Err(ErrorKind::Limit { what, limit: MAX_EXPORTS as usize }.into());
            }
        }
        let names_at = head.address_of_names.get(LE);
        Ok(Some(Self {
            image,
            directory,
            dll_name: head.name.get(LE),
            base: head.base.get(LE),
            functions: table(
                image,
                head.address_of_functions.get(LE),
                functions,
                "the table of exported addresses",
                u32::from_le_bytes,
            )?,
            names: table(image, names_at, names, "the table of exported names", u32::from_le_bytes)?,
            ordinals: table(
                image,
                head.address_of_name_ordinals.get(LE),
                names,
                "the table of the names' ordinals",
                u16::from_le_bytes,
            )?,
        }))
    }

    /// How many functions and variables the directory has room for; unused ordinals count.
    pub fn len(&self) -> usize {
        self.functions.elements.len()
    }

    /// Whether the directory is empty.
    pub fn is_empty(&self) -> bool {
        self.functions.elements.is_empty()
    }

    /// How many names there are.
    pub fn names(&self) -> usize {
        self.names.elements.len()
    }

    /// The name that the image was given when it was linked: `ntoskrnl.exe`, whatever file it was loaded from.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if it is outside the image; as [`Memory::read_c_string`].
    pub fn dll_name(&self) -> Result<String> {
        self.string(self.dll_name, "the name of the image")
    }

    /// The export of exactly this name.
    ///
    /// # Errors
    /// [`ErrorKind::NoSymbol`] if there is none: all names were compared. If some are not in memory, the error of their read, since the name may be one
    /// of them.
    pub fn find(&self, name: &str) -> Result<Export> {
        // The directory's names are sorted, says the format. A hit proves itself; a miss proves nothing in a table that may lie.
        let index = match self.search(name) {
            Some(index) => index,
            None => self.search_all(name)?,
        };
        self.named(index).map_err(|lost| lost.error)
    }

    /// The export of this ordinal.
    ///
    /// # Errors
    /// [`ErrorKind::NoObject`] if the ordinal is not used; otherwise the error of the read.
    pub fn by_ordinal(&self, ordinal: u32) -> Result<Export> {
        let index = ordinal.checked_sub(self.base).map(|index| index as usize).filter(|&index| index < self.len());
        let target = index.map(|index| self.target(index)).transpose()?.flatten();
        let (Some(index), Some(target)) = (index, target) else {
            return Err(ErrorKind::NoObject { what: format!("export #{ordinal} in the image at {}", self.image.base) }.into());
        };
        let position =
            self.ordinals.elements.iter().position(|ordinal| ordinal.is_some_and(|ordinal| usize::from(ordinal) == index));
        let name = position.map(|position| self.name(position)).transpose()?;
        Ok(Export { name, ordinal, target })
    }

    /// All exports: those with names in the order of the names, one for each name, then those without.
    pub fn iter(&self) -> impl Iterator<Item = Result<Export, LostExport>> {
        let mut has_name = vec![false; self.len()];
        let mut unknown = None;
        for (position, ordinal) in self.ordinals.elements.iter().enumerate() {
            match ordinal {
                Some(ordinal) => {
                    if let Some(has_name) = has_name.get_mut(usize::from(*ordinal)) {
                        *has_name = true;
                    }
                }
                None => unknown = Some(position),
            }
        }
        let named = (0..self.names()).map(|position| self.named(position));
        let nameless = has_name.into_iter().enumerate().filter(|(_, has_name)| !has_name).filter_map(move |(index, _)| {
            let ordinal = self.base.saturating_add(index as u32);
            let lost = |what, error| LostExport { name: None, ordinal: Some(ordinal), what, error };
            let target = match self.target(index) {
                Ok(target) => target?,
                Err(error) => return Some(Err(lost("its address", error))),
            };
            match unknown.map(|position| self.ordinals.again(self.image, position)) {
                Some(Err(error)) => Some(Err(lost("whether it has a name", error))),
                _ => Some(Ok(Export { name: None, ordinal, target })),
            }
        });
        named.chain(nameless)
    }

    /// Adds all exports with names and addresses in the image to `symbols`. Returns those that are lost.
    pub fn add_to(&self, symbols: &mut SymbolsBuilder) -> Vec<LostExport> {
        let mut lost = Vec::new();
        for export in self.iter() {
            match export {
                Ok(Export { name: Some(name), target: ExportTarget::Offset(offset), .. }) => {
                    symbols.push(&name, self.image.base.wrapping_add(offset.into()), b'E');
                }
                Ok(_) => {}
                Err(error) => lost.push(error),
            }
        }
        lost
    }

    /// The position of a name that is where a sorted table has it.
    fn search(&self, name: &str) -> Option<usize> {
        let (mut low, mut high) = (0, self.names());
        while low < high {
            let middle = low.midpoint(high);
            let here = self.raw_name(middle).ok()?;
            match here.as_slice().cmp(name.as_bytes()) {
                core::cmp::Ordering::Equal => return Some(middle),
                core::cmp::Ordering::Less => low = middle.saturating_add(1),
                core::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    fn search_all(&self, name: &str) -> Result<usize> {
        let mut unknown = None;
        for position in 0..self.names() {
            match self.raw_name(position) {
                Ok(here) if here == name.as_bytes() => return Ok(position),
                Ok(_) => {}
                Err(error) => unknown = unknown.or(Some(error)),
            }
        }
        Err(unknown.unwrap_or_else(|| ErrorKind::NoSymbol { name: name.to_owned() }.into()))
    }

    fn named(&self, position: usize) -> Result<Export, LostExport> {
        let name = self.name(position);
        let ordinal = match self.ordinals.elements.get(position).copied().flatten() {
            Some(ordinal) => ordinal,
            None => {
                let error = match self.ordinals.again(self.image, position) {
                    Err(error) => error,
                    Ok(()) => corrupt(self.ordinals.at, "the table of the names' ordinals changed while it was read"),
                };
                return Err(LostExport { name: name.ok(), ordinal: None, what: "its ordinal", error });
            }
        };
        let number = self.base.saturating_add(ordinal.into());
        let target = match self.target(ordinal.into()) {
            Ok(Some(target)) => Ok(target),
            Ok(None) => Err(corrupt(self.functions.at, format!("a name stands for the unused ordinal {number}"))),
            Err(error) => Err(error),
        };
        match (name, target) {
            (Ok(name), Ok(target)) => Ok(Export { name: Some(name), ordinal: number, target }),
            (Err(error), _) => Err(LostExport { name: None, ordinal: Some(number), what: "its name", error }),
            (Ok(name), Err(error)) => Err(LostExport { name: Some(name), ordinal: Some(number), what: "its address", error }),
        }
    }

    /// What an element of the table of addresses stands for; `None` for an ordinal that is not used.
    fn target(&self, index: usize) -> Result<Option<ExportTarget>> {
        let Some(element) = self.functions.elements.get(index) else {
            let what = format!("an export's ordinal {index} is beyond the table of {} addresses", self.len());
            return Err(corrupt(self.functions.at, what));
        };
        let Some(offset) = *element else {
            self.functions.again(self.image, index)?;
            return Err(corrupt(self.functions.at, "the table of exported addresses changed while it was read"));
        };
        // What lies within the directory is no code but the text of a forwarder.
        let in_directory = offset.checked_sub(self.directory.offset).is_some_and(|beyond| beyond < self.directory.size);
        match offset {
            0 => Ok(None),
            _ if in_directory => Ok(Some(ExportTarget::Forwarder(self.string(offset, "the text of a forwarder")?))),
            _ => self.image.address(offset.into(), 0, "an exported address").map(|_| Some(ExportTarget::Offset(offset))),
        }
    }

    fn name(&self, position: usize) -> Result<String> {
        self.raw_name(position).map(text)
    }

    fn raw_name(&self, position: usize) -> Result<Vec<u8>> {
        match self.names.elements.get(position).copied().flatten() {
            Some(offset) => self.raw_string(offset, "an exported name"),
            None => {
                self.names.again(self.image, position)?;
                Err(corrupt(self.names.at, "the table of exported names changed while it was read"))
            }
        }
    }

    fn string(&self, offset: u32, what: &str) -> Result<String> {
        self.raw_string(offset, what).map(text)
    }

    fn raw_string(&self, offset: u32, what: &str) -> Result<Vec<u8>> {
        let at = self.image.address(offset.into(), 1, what)?;
        let left = self.image.headers.size_of_image.saturating_sub(offset) as usize;
        match self.image.memory.read_c_string(at, left.min(USUAL_NAME)) {
            Err(error) if matches!(error.kind(), ErrorKind::Unterminated { .. }) => {
                self.image.memory.read_c_string(at, left.min(MAX_NAME))
            }
            read => read,
        }
    }
}

fn text(bytes: Vec<u8>) -> String {
    match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    }
}

/// Reads a table of `count` elements, which is at most 65,536.
fn table<M: Memory<Addr = VirtAddr> + ?Sized, T, const N: usize>(
    image: &PeImage<'_, M>,
    rva: u32,
    count: u32,
    what: &str,
    element: impl Fn([u8; N]) -> T,
) -> Result<Table<T>> {
    // An empty table may have no place.
    if count == 0 {
        return Ok(Table { at: image.base, elements: Vec::new() });
    }
    let len = (count as usize).saturating_mul(N);
    let at = image.address(rva.into(), len as u64, what)?;
    let mut bytes = vec![0; len];
    let mut gaps = image.memory.read_lossy(at, &mut bytes)?.into_iter().peekable();
    let mut elements = Vec::with_capacity(count as usize);
    for (index, chunk) in bytes.as_chunks::<N>().0.iter().enumerate() {
        let start = index.saturating_mul(N);
        while gaps.next_if(|gap| gap.end <= start).is_some() {}
        let lost = gaps.peek().is_some_and(|gap| gap.start < start.saturating_add(N));
        elements.push((!lost).then(|| element(*chunk)));
    }
    Ok(Table { at, elements })
}

impl<T> Table<T> {
    /// Reads an element once more, for the error that says why it is not there.
    fn again<M: Memory<Addr = VirtAddr> + ?Sized>(&self, image: &PeImage<'_, M>, index: usize) -> Result<()> {
        let at = self.at.wrapping_add((index as u64).saturating_mul(size_of::<T>() as u64));
        let mut buffer = [0; 4];
        image.memory.read_into(at, buffer.get_mut(..size_of::<T>()).unwrap_or_default())
    }
}

impl<M: ?Sized> fmt::Debug for Exports<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Exports");
        debug.field("image", &self.image.base).field("functions", &self.functions.elements.len());
        debug.field("names", &self.names.elements.len()).finish_non_exhaustive()
    }
}
