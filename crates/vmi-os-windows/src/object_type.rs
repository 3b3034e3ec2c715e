//! Types of objects: `_OBJECT_TYPE`, and how an object's header names one.

use vmi_arch_x86::X86Driver;
use vmi_core::{Error, ErrorKind, Memory, Result, VirtAddr};

use crate::{Object, Windows};

/// An index of a type is a byte.
const INDICES: u64 = 256;
/// The first build of Windows 10: since then the index in an object's header is encoded.
const FIRST_ENCODED: u32 = 9800;
/// A name of a type has some 30 characters.
const MAX_NAME: usize = 128;

/// A type of objects: `File`, `Process`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectType {
    /// Its name.
    pub name: String,
    /// Its number, by which headers of objects name it since Windows 7; before, a number without use.
    pub index: u32,
    /// How many objects of it there are.
    pub objects: u32,
    /// How many handles to objects of it there are.
    pub handles: u32,
    /// Where its `_OBJECT_TYPE` is.
    pub object: VirtAddr,
}

/// The types by index, and how indices are encoded.
#[derive(Debug)]
pub(crate) struct TypeTable {
    types: Vec<ObjectType>,
    /// What the index in a header is combined with, besides a byte of the header's address; `None` where it is in clear.
    cookie: Option<u8>,
    /// What could not be read.
    problem: Option<String>,
}

impl<'v, D: X86Driver> Windows<'v, D> {
    /// The types of objects that the kernel has.
    ///
    /// They come from `ObTypeIndexTable`; without that symbol from the object directory `\ObjectTypes`.
    ///
    /// # Errors
    /// If neither can be found or read.
    pub fn object_types(&self) -> Result<Vec<ObjectType>> {
        let table = self.type_table();
        match &table.problem {
            Some(_) if table.types.is_empty() => Err(self.no_type("the table of object types")),
            _ => Ok(table.types.clone()),
        }
    }

    fn type_table(&self) -> &TypeTable {
        self.objects.types.get_or_init(|| self.read_type_table())
    }

    fn no_type(&self, name: &str) -> Error {
        let why = self.type_table().problem.clone().unwrap_or_else(|| "the table of object types does not hold it".to_owned());
        ErrorKind::NoType { name: name.to_owned(), why }.into()
    }

    /// The type whose `_OBJECT_TYPE` is at `at`.
    pub(crate) fn object_type_at(&self, at: VirtAddr) -> Result<ObjectType> {
        let layout = &self.objects.layout.object_type;
        let name = self.string(layout.name.of(at)?)?;
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(Error::corrupt("no type of objects: its name cannot be one", at));
        }
        // The index was four bytes long before Windows 7.
        let index = match layout.index.size()? {
            1 => u32::from(self.read::<u8>(at, layout.index)?),
            _ => self.read(at, layout.index)?,
        };
        let count = |member| self.read::<u32>(at, member).unwrap_or(0);
        Ok(ObjectType { name, index: index & 0xff, objects: count(layout.objects), handles: count(layout.handles), object: at })
    }

    fn read_type_table(&self) -> TypeTable {
        let mut problem = None;
        let mut types = self.types_by_index().unwrap_or_else(|error| {
            problem = Some(error.to_string());
            Vec::new()
        });
        if types.is_empty() {
            match self.types_by_directory() {
                Ok(found) => types = found,
                Err(error) => problem = Some(format!("{}; {error}", problem.unwrap_or_default())),
            }
        }
        let cookie = self.cookie(&types);
        TypeTable { types, cookie, problem }
    }

    /// The types out of the array of pointers to them.
    fn types_by_index(&self) -> Result<Vec<ObjectType>> {
        let table = self.symbol("ObTypeIndexTable")?;
        let mut types = Vec::new();
        // The first two elements are no types: a null pointer, and a pattern that faults.
        for index in 2..INDICES {
            let at = self.pointer_at(table.wrapping_add(index.wrapping_mul(self.pointer_size())))?;
            if at.is_null() {
                break;
            }
            let mut found = self.object_type_at(at)?;
            found.index = u32::try_from(index).unwrap_or(u32::MAX);
            types.push(found);
        }
        Ok(types)
    }

    /// The types out of the directory of objects, in which each is an object.
    fn types_by_directory(&self) -> Result<Vec<ObjectType>> {
        for entry in self.directory_entries(self.root_directory()?) {
            let directory = entry?;
            if directory.name()?.as_deref() == Some("ObjectTypes") {
                return self.directory_entries(directory.address()).map(|kind| self.object_type_at(kind?.address())).collect();
            }
        }
        Err(ErrorKind::NoObject { what: "object directory `\\ObjectTypes`".to_owned() }.into())
    }

    /// What indices of types are combined with: what makes the process System a process; else what the variable
    /// `ObHeaderCookie` says.
    fn cookie(&self, types: &[ObjectType]) -> Option<u8> {
        let said: Option<u8> = self.symbol("ObHeaderCookie").and_then(|at| self.space.read(at)).ok();
        let by_system = || {
            let process = types.iter().find(|kind| kind.name == "Process")?;
            let header = self.objects.layout.header.body.owner(self.system_process().address()).ok()?;
            let stored: u8 = self.read(header, self.objects.layout.header.type_index).ok()?;
            let index = u8::try_from(process.index).ok()?;
            Some((stored == index, stored ^ index ^ address_byte(header)))
        };
        let found = by_system();
        // An index in clear can be one that is encoded, by chance, and the other way round: the build tells.
        let encoded = match (self.build(), found) {
            (Some(build), _) => build >= FIRST_ENCODED,
            (None, Some((clear, _))) => !clear,
            (None, None) => said.is_some(),
        };
        found.map(|(_, cookie)| cookie).or(said).filter(|_| encoded)
    }

    /// The index of its type in the object's header at `header`, decoded.
    pub(crate) fn type_index(&self, header: VirtAddr) -> Result<u8> {
        let stored: u8 = self.read(header, self.objects.layout.header.type_index)?;
        Ok(match self.type_table().cookie {
            Some(cookie) => stored ^ cookie ^ address_byte(header),
            None => stored,
        })
    }
}

/// The byte of a header's address that the index of the object's type is combined with since Windows 10.
fn address_byte(header: VirtAddr) -> u8 {
    (header.get() >> 8 & 0xff) as u8
}

impl<D: X86Driver> Object<'_, '_, D> {
    /// The name of its type: `File`.
    ///
    /// # Errors
    /// As [`Memory::read_into`]; [`ErrorKind::NoType`] if the types of this guest cannot be told, or the object's is none of them.
    pub fn type_name(&self) -> Result<String> {
        let (windows, header) = (self.windows, self.header()?);
        let layout = &windows.objects.layout.header;
        if layout.kind.exists() && !layout.type_index.exists() {
            return Ok(windows.object_type_at(windows.pointer(header, layout.kind)?)?.name);
        }
        let index = windows.type_index(header)?;
        let found = windows.type_table().types.iter().find(|kind| kind.index == u32::from(index));
        found.map(|kind| kind.name.clone()).ok_or_else(|| windows.no_type(&format!("object type {index}")))
    }
}
