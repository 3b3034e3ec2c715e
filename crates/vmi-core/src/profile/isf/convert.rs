//! From the file as it is written to numbered types.

use rustc_hash::FxHashMap;

use super::json::{Enumeration, File, Name, TypeRef, UserType};
use super::{Isf, IsfError, IsfPdb, IsfSymbol};
use crate::{Member, Structure, Type, TypeId};

/// Types by the three kinds of name. A name is numbered when it is first seen, and stays unknown if the file never describes it.
#[derive(Default)]
struct Types<'a> {
    types: Vec<Type>,
    bases: FxHashMap<&'a str, TypeId>,
    structures: FxHashMap<&'a str, TypeId>,
    enumerations: FxHashMap<&'a str, TypeId>,
    /// Pointers and arrays, each once.
    pointers: FxHashMap<TypeId, TypeId>,
    arrays: FxHashMap<(TypeId, u64), TypeId>,
    function: Option<TypeId>,
}

pub(super) fn isf(file: File<'_>) -> Result<Isf, IsfError> {
    let format = &file.metadata.format.0;
    if !matches!(format.split('.').next(), Some("4" | "5" | "6")) {
        return Err(IsfError::Format { format: format.chars().take(32).collect() });
    }
    let mut types = Types::default();
    types.add(Type::Void)?;
    let mut pointer_size = 8;
    for (Name(name), base) in &file.base_types.0 {
        if name == "pointer" {
            pointer_size = base.size;
        }
        let ty = match &*base.kind.0 {
            "void" => Type::Void,
            _ => Type::Number { name: name.to_string(), size: base.size, signed: base.signed },
        };
        let id = types.add(ty)?;
        types.bases.insert(name, id);
    }
    for (Name(name), _) in &file.user_types.0 {
        let id = types.add(Type::Void)?;
        types.structures.insert(name, id);
    }
    for (Name(name), enumeration) in &file.enums.0 {
        let id = types.add(constants(name, enumeration))?;
        types.enumerations.insert(name, id);
    }
    let owned = |names: &FxHashMap<&str, TypeId>| names.iter().map(|(&name, &id)| (name.to_owned(), id)).collect();
    let (structures, enumerations) = (owned(&types.structures), owned(&types.enumerations));
    for (Name(name), user) in &file.user_types.0 {
        let structure = types.structure(name, user)?;
        if let Some(&id) = types.structures.get(&**name)
            && let Some(slot) = types.types.get_mut(id.0 as usize)
        {
            *slot = Type::Structure(structure);
        }
    }
    let mut symbols = Vec::with_capacity(file.symbols.0.len());
    let mut banner = None;
    for (Name(name), symbol) in &file.symbols.0 {
        let ty = symbol.ty.as_ref().map(|ty| types.id(ty)).transpose()?.unwrap_or(TypeId(0));
        symbols.push(IsfSymbol { name: name.to_string(), address: symbol.address, ty });
        if name == "linux_banner" {
            banner = symbol.constant_data.as_ref().and_then(|data| base64(&data.0));
        }
    }
    symbols.sort_by(|a, b| a.name.cmp(&b.name));
    let pdb = file.metadata.windows.and_then(|windows| windows.pdb);
    let pdb = pdb.map(|pdb| IsfPdb { database: pdb.database.0.into_owned(), guid: pdb.guid.0.into_owned(), age: pdb.age });
    Ok(Isf {
        symbols,
        types: types.types,
        structures,
        enumerations,
        pointer_size,
        pdb,
        linux: file.metadata.linux.is_some(),
        banner: banner.map(|banner| banner.trim_end_matches(['\0', '\n']).to_owned()),
        origin: "symbol file".to_owned(),
    })
}

impl<'a> Types<'a> {
    fn add(&mut self, ty: Type) -> Result<TypeId, IsfError> {
        let id = u32::try_from(self.types.len()).map_err(|_| IsfError::TooMany)?;
        self.types.push(ty);
        Ok(TypeId(id))
    }

    fn id(&mut self, ty: &'a TypeRef<'_>) -> Result<TypeId, IsfError> {
        match ty {
            TypeRef::Base { name } => self.named(&name.0, |types| &mut types.bases),
            TypeRef::Structure { name } => self.named(&name.0, |types| &mut types.structures),
            TypeRef::Enumeration { name } => self.named(&name.0, |types| &mut types.enumerations),
            TypeRef::Pointer { target } => {
                let target = target.as_ref().map(|target| self.id(target)).transpose()?.unwrap_or(TypeId(0));
                self.once(target, |types| &mut types.pointers, Type::Pointer { target })
            }
            TypeRef::Array { count, element } => {
                let element = self.id(element)?;
                self.once((element, *count), |types| &mut types.arrays, Type::Array { element, count: *count })
            }
            TypeRef::Bitfield { of, .. } => self.id(of),
            TypeRef::Function => match self.function {
                Some(id) => Ok(id),
                None => {
                    let id = self.add(Type::Function)?;
                    self.function = Some(id);
                    Ok(id)
                }
            },
        }
    }

    fn named(
        &mut self,
        name: &'a str,
        names: impl FnOnce(&mut Self) -> &mut FxHashMap<&'a str, TypeId>,
    ) -> Result<TypeId, IsfError> {
        self.once(name, names, Type::Void)
    }

    fn once<K: core::hash::Hash + Eq>(
        &mut self,
        key: K,
        known: impl FnOnce(&mut Self) -> &mut FxHashMap<K, TypeId>,
        ty: Type,
    ) -> Result<TypeId, IsfError> {
        // The number the type gets if it is new.
        let next = TypeId(u32::try_from(self.types.len()).map_err(|_| IsfError::TooMany)?);
        let id = *known(self).entry(key).or_insert(next);
        if id == next {
            self.types.push(ty);
        }
        Ok(id)
    }

    fn structure(&mut self, name: &str, user: &'a UserType<'_>) -> Result<Structure, IsfError> {
        let mut members = Vec::with_capacity(user.fields.0.len());
        for (Name(name), field) in &user.fields.0 {
            let ty = self.id(&field.ty)?;
            let name = if field.anonymous == Some(true) { String::new() } else { name.to_string() };
            let start = field.offset.saturating_mul(8);
            let (bit_offset, bit_width) = match field.ty {
                TypeRef::Bitfield { position, width, .. } => (start.saturating_add(position.into()), Some(width)),
                _ => (start, None),
            };
            members.push(Member { name, bit_offset, bit_width, ty });
        }
        // The file has them by name.
        members.sort_by_key(|member| member.bit_offset);
        Ok(Structure { name: name.to_owned(), size: user.size, union: user.kind.0 == "union", members })
    }
}

fn constants(name: &str, enumeration: &Enumeration<'_>) -> Type {
    let values = enumeration.constants.0.iter().map(|(Name(name), value)| (name.to_string(), value.0)).collect();
    Type::Enumeration { name: name.to_owned(), size: enumeration.size, values }
}

/// Text in base 64 with the standard alphabet; `None` if it is not that.
fn base64(text: &str) -> Option<String> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.trim_end_matches('=').bytes().map(|byte| ALPHABET.iter().position(|&digit| digit == byte));
    let digits = digits.collect::<Option<Vec<_>>>()?;
    let mut bytes = Vec::with_capacity(digits.len());
    for group in digits.chunks(4) {
        let bits = group.iter().chain([0; 3].iter()).take(4).fold(0u32, |bits, &digit| bits << 6 | digit as u32);
        let [_, whole @ ..] = bits.to_be_bytes();
        bytes.extend(whole.iter().take(group.len().saturating_sub(1)));
    }
    String::from_utf8(bytes).ok()
}
