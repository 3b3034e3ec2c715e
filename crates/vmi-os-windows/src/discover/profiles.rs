//! Where symbols and types of a kernel can come from, best first.

use std::sync::Arc;

use vmi_core::{Symbols, SymbolsBuilder, TypeSource, VirtAddr};

use super::Options;
use super::image::KernelImage;
use crate::BuiltIn;

/// Symbols and types that may be those of a kernel.
#[derive(Clone, Debug)]
pub(super) struct Profile {
    /// At the addresses of this guest.
    pub(super) symbols: Option<Arc<Symbols>>,
    pub(super) types: Option<Arc<dyn TypeSource>>,
    /// Whether they were made for exactly this kernel, as its program database says, or the user gave them.
    pub(super) is_exact: bool,
    /// What is remarkable about them.
    pub(super) remarks: Vec<String>,
}

/// What the user gave, then what belongs to the kernel's program database. Some may have symbols only, or types only. Beside them, which
/// symbol file is not there.
pub(super) fn exact(options: &Options, image: &KernelImage) -> (Vec<Profile>, Option<String>) {
    let mut profiles = Vec::new();
    if options.symbols.is_some() || options.types.is_some() {
        profiles.push(Profile {
            symbols: options.symbols.as_deref().map(|symbols| Arc::new(moved(symbols, image.base))),
            types: options.types.clone(),
            is_exact: true,
            remarks: Vec::new(),
        });
    }
    let stored = image.pdb.as_ref().map(|identity| options.store.load(identity));
    let missing = match stored {
        Some(Ok(file)) => {
            profiles.push(Profile {
                symbols: Some(Arc::new(file.symbols(image.base))),
                types: Some(Arc::new(file)),
                is_exact: true,
                remarks: Vec::new(),
            });
            None
        }
        Some(Err(missing)) => Some(format!("the kernel's symbol file is not here: {}", missing.wanted)),
        None => None,
    };
    if let Some(found) = image.pdb.as_ref().and_then(BuiltIn::for_pdb) {
        let mut symbols = SymbolsBuilder::default();
        for &(name, offset) in found.symbols() {
            symbols.push(name, image.base.wrapping_add(offset), b'?');
        }
        let partial = "symbols and types are those that the built-in table has of this kernel; its symbol file would have all";
        profiles.push(Profile {
            symbols: Some(Arc::new(symbols.build())),
            types: Some(Arc::new(found)),
            is_exact: true,
            remarks: vec![partial.to_owned()],
        });
    }
    (complete(profiles), missing)
}

/// Profiles with symbols and types, where there are any: what one lacks comes from the first one behind it that has it.
fn complete(mut profiles: Vec<Profile>) -> Vec<Profile> {
    for index in 0..profiles.len() {
        let (_, rest) = profiles.split_at_mut(index);
        let Some((profile, behind)) = rest.split_first_mut() else { break };
        if profile.symbols.is_none() {
            profile.symbols = behind.iter().find_map(|other| other.symbols.clone());
        }
        if profile.types.is_none() {
            profile.types = behind.iter().find_map(|other| other.types.clone());
        }
    }
    profiles
}

/// Symbols that count from zero, at the addresses of an image.
fn moved(symbols: &Symbols, base: VirtAddr) -> Symbols {
    let mut moved = SymbolsBuilder::default();
    moved.reserve(symbols.len());
    for symbol in symbols.iter() {
        moved.push(symbol.name, base.wrapping_add(symbol.address.get()), symbol.kind);
    }
    moved.build()
}
