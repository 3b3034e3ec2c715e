//! From a mapped kernel image to a [`Kernel`]: symbols, root, banner and types.

use std::sync::Arc;

use memchr::memmem;
use vmi_arch_x86::X86Driver;
use vmi_core::{Memory, Paging, PhysAddr, Symbols, SymbolsBuilder, VirtAddr, Vmi};

use super::image::KernelImage;
use super::kallsyms::{DIGITS, Table};
use super::{Failure, Options, types};
use crate::Kernel;
use crate::shape::{self, Hints};

/// How every kernel's banner begins (kernel: init/version-timestamp.c).
const BANNER: &[u8] = b"Linux version ";

/// Bytes that a banner may have: real ones have about 200.
const MAX_BANNER: usize = 1024;

/// Digit runs in one image that are looked at.
const MAX_TRIES: usize = 256;

/// The kernel in `image`.
pub(super) fn kernel<D: X86Driver>(vmi: &Vmi<D>, options: &Options, image: &KernelImage) -> Result<Kernel, Failure> {
    let mut remarks = Vec::new();
    let found = find_symbols(vmi, image);
    let mut symbols = match &options.symbols {
        Some(given) => move_symbols(given, image, found.as_ref().ok())?,
        None => found?,
    };
    let banner = banner(vmi, image, &symbols)?;
    let root = root(vmi, image, &symbols, &mut remarks);
    let known = options.types.clone().or_else(|| types::in_image(vmi, image, &symbols, &mut remarks));
    let types = match known {
        Some(types) => types,
        None => {
            let hints = Hints { symbols: &symbols, pointer_size: None, tables: Some((image.mode, root)) };
            match shape::infer(vmi, &hints) {
                Ok(inferred) => {
                    symbols = with(&symbols, inferred.symbols);
                    remarks.extend(inferred.remarks);
                    Arc::new(inferred.types)
                }
                Err(error) => {
                    remarks.push(format!("the kernel carries no type information (BTF), and none could be inferred: {error}"));
                    types::none(image)
                }
            }
        }
    };
    Ok(Kernel { mode: image.mode, root, symbols: Arc::new(symbols), types, banner, remarks })
}

/// `symbols` and those of `more` that it lacks.
fn with(symbols: &Symbols, more: Vec<(String, VirtAddr)>) -> Symbols {
    let mut all = SymbolsBuilder::default();
    all.reserve(symbols.len().saturating_add(more.len()));
    for symbol in symbols.iter() {
        all.push(symbol.name, symbol.address, symbol.kind);
    }
    for (name, address) in more {
        if symbols.find(&name).is_none() {
            all.push(&name, address, b'd');
        }
    }
    all.build()
}

/// The symbol table in the image.
fn find_symbols<D: X86Driver>(vmi: &Vmi<D>, image: &KernelImage) -> Result<Symbols, Failure> {
    let digits = memmem::Finder::new(DIGITS);
    let mut why = None;
    let mut tries = 0usize;
    for range in image.constants_first() {
        let bytes = range.bytes(vmi);
        for hit in digits.find_iter(&bytes) {
            tries = tries.saturating_add(1);
            if tries > MAX_TRIES {
                break;
            }
            let mut builder = SymbolsBuilder::default();
            let table = Table::locate(&bytes, hit, range.start.get(), image.mode.pointer_size());
            match table.and_then(|table| table.decode(&mut builder)) {
                Ok(()) => {
                    let symbols = builder.build();
                    if symbols.find("_stext").is_some_and(|text| image.locate(text.address).is_some()) {
                        return Ok(symbols);
                    }
                    let why = "its addresses are not where the page tables map the kernel".to_owned();
                    return Err(Failure::Stale { at: range.at.wrapping_add(hit as u64), why });
                }
                // Not even an index is the most common: keep what came closer.
                Err(reject) => why = why.max(Some(reject)),
            }
        }
    }
    Err(Failure::NoSymbols { root: image.root, mode: image.mode, why })
}

/// Symbols of a file, moved to where the kernel runs: by the address of `_stext` in memory, or, of a 64-bit kernel, by the start of
/// its image.
fn move_symbols(given: &Symbols, image: &KernelImage, found: Option<&Symbols>) -> Result<Symbols, Failure> {
    let linked = |name| given.find(name).map(|symbol| symbol.address);
    let slide = match (found.and_then(|found| found.find("_stext")), linked("_stext"), linked("_text")) {
        (Some(runs), Some(linked), _) => runs.address.get().wrapping_sub(linked.get()),
        (None, _, Some(linked)) if image.mode.pointer_size() == 8 => image.start().get().wrapping_sub(linked.get()),
        _ => return Err(Failure::NotThere("the given symbols lack _text or _stext")),
    };
    let mut moved = SymbolsBuilder::default();
    moved.reserve(given.len());
    // Absolute symbols, as the per-CPU ones are before Linux 6.15, do not move.
    let lowest = linked("_text").or(linked("_stext")).unwrap_or_default();
    for symbol in given.iter() {
        let address = if symbol.address < lowest { symbol.address } else { symbol.address.wrapping_add(slide) };
        moved.push(symbol.name, address, symbol.kind);
    }
    Ok(moved.build())
}

/// The banner: where the symbol says, or (kernels whose table names code only) the first text in the image that looks so.
fn banner<D: X86Driver>(vmi: &Vmi<D>, image: &KernelImage, symbols: &Symbols) -> Result<String, Failure> {
    if let Some(symbol) = symbols.find("linux_banner") {
        let at = image.locate(symbol.address);
        let text = at.and_then(|at| vmi.read_c_string(at, MAX_BANNER).ok()).unwrap_or_default();
        return match text.starts_with(BANNER) {
            true => Ok(one_line(&text)),
            false => {
                let why = "no banner at linux_banner".to_owned();
                Err(Failure::Stale { at: at.unwrap_or_default(), why })
            }
        };
    }
    let finder = memmem::Finder::new(BANNER);
    for range in image.constants_first() {
        let bytes = range.bytes(vmi);
        for hit in finder.find_iter(&bytes) {
            let rest = bytes.get(hit..).unwrap_or_default();
            let text = rest.get(..rest.len().min(MAX_BANNER)).unwrap_or_default();
            // A digit tells the banner from the format strings that print one.
            if text.get(BANNER.len()).is_some_and(u8::is_ascii_digit) {
                return Ok(one_line(text));
            }
        }
    }
    Err(Failure::NotThere("the kernel image holds no banner"))
}

fn one_line(text: &[u8]) -> String {
    let end = memchr::memchr2(b'\n', 0, text).unwrap_or(text.len());
    String::from_utf8_lossy(text.get(..end).unwrap_or_default()).into_owned()
}

/// The kernel's own root table, if the symbols name it and it maps the same image; else the one the image was found by.
fn root<D: X86Driver>(vmi: &Vmi<D>, image: &KernelImage, symbols: &Symbols, remarks: &mut Vec<String>) -> PhysAddr {
    let named = symbols.find("init_top_pgt").or_else(|| symbols.find("swapper_pg_dir"));
    let own = named.and_then(|symbol| image.locate(symbol.address)).filter(|&root| maps(vmi, image, root, image.start()));
    own.unwrap_or_else(|| {
        remarks.push(format!("the kernel's own root page table is not known; those at {} are used", image.root));
        image.root
    })
}

/// Whether the page tables at `root` map `at` to where the image has it.
fn maps<D: X86Driver>(vmi: &Vmi<D>, image: &KernelImage, root: PhysAddr, at: VirtAddr) -> bool {
    image.mode.translate(vmi, root, at).ok().map(|page| page.at) == image.locate(at)
}
