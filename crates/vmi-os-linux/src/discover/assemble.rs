//! From a mapped kernel image to a [`Kernel`]: symbols, root, banner and types.

use std::sync::Arc;

use memchr::memmem;
use vmi_arch_x86::X86Driver;
use vmi_core::{Memory, Paging, PhysAddr, Symbols, SymbolsBuilder, VirtAddr, Vmi};

use super::image::KernelImage;
use super::kallsyms::{DIGITS, Table};
use super::{Failure, Options, candidates, types};
use crate::Kernel;
use crate::shape::{self, Hints, Inferred};

/// How every kernel's banner begins (kernel: init/version-timestamp.c).
const BANNER: &[u8] = b"Linux version ";

/// Bytes that a banner may have: real ones have about 200.
const MAX_BANNER: usize = 1024;

/// Digit runs in one image that are looked at.
const MAX_TRIES: usize = 64;

/// The kernel in `image`.
pub(super) fn kernel<D: X86Driver>(vmi: &Vmi<D>, options: &Options, image: &KernelImage) -> Result<Kernel, Failure> {
    let mut remarks = Vec::new();
    let found = find_symbols(vmi, image);
    let table = found.as_ref().ok().map(|(_, table)| *table);
    let mut symbols = match &options.symbols {
        Some(given) => move_symbols(given, image, found.as_ref().ok().map(|(symbols, _)| symbols))?,
        None => found?.0,
    };
    let banner = banner(vmi, image, &symbols)?;
    let root = root(vmi, image, &symbols, table).unwrap_or_else(|| {
        remarks.push(format!("the kernel's own root page table is not known; those at {} are used", image.root));
        image.root
    });
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

/// The kernel that was found by its tasks.
pub(super) fn inferred<D: X86Driver>(vmi: &Vmi<D>, options: &Options, inferred: Inferred) -> Result<Kernel, Failure> {
    let image = KernelImage::map(vmi, inferred.root, inferred.mode)?;
    let mut remarks = vec!["the kernel has no symbol table in memory: System.map or vmlinux would name its symbols".to_owned()];
    let symbols = match &options.symbols {
        Some(given) => move_symbols(given, &image, None)?,
        None => Symbols::default(),
    };
    let banner = banner(vmi, &image, &symbols)?;
    let types = match options.types.clone().or_else(|| types::in_image(vmi, &image, &symbols, &mut remarks)) {
        Some(types) => types,
        None => {
            remarks.extend(inferred.remarks);
            Arc::new(inferred.types)
        }
    };
    let symbols = Arc::new(with(&symbols, inferred.symbols));
    Ok(Kernel { mode: inferred.mode, root: inferred.root, symbols, types, banner, remarks })
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
            // As nm(1) marks what it does not know.
            all.push(&name, address, b'?');
        }
    }
    all.build()
}

/// The symbols of the table in the image, and where its digit tokens are.
fn find_symbols<D: X86Driver>(vmi: &Vmi<D>, image: &KernelImage) -> Result<(Symbols, VirtAddr), Failure> {
    let digits = memmem::Finder::new(DIGITS);
    let mut why = None;
    let mut stale = None;
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
            let decoded = table.and_then(|table| {
                table.decode(&mut builder)?;
                // scripts/kallsyms.c leaves these out of the table, whose pieces they are.
                for (name, at) in table.pieces() {
                    builder.push(name, at, b'?');
                }
                Ok(())
            });
            match decoded {
                Ok(()) => {
                    let symbols = builder.build();
                    if symbols.find("_stext").is_some_and(|text| image.locate(text.address).is_some()) {
                        return Ok((symbols, range.start.wrapping_add(hit as u64)));
                    }
                    stale = Some(range.at.wrapping_add(hit as u64));
                }
                // The piece that is missing last came closest.
                Err(reject) => why = why.max(Some(reject)),
            }
        }
    }
    Err(match stale {
        Some(at) => Failure::Stale { at, why: "its addresses are not where the page tables map the kernel".to_owned() },
        None => Failure::NoSymbols { root: image.root, mode: image.mode, why },
    })
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
    let mut first = None;
    for range in image.constants_first() {
        let bytes = range.bytes(vmi);
        for hit in finder.find_iter(&bytes).take(MAX_TRIES) {
            let rest = bytes.get(hit..).unwrap_or_default();
            let text = one_line(rest.get(..rest.len().min(MAX_BANNER)).unwrap_or_default());
            // A digit tells the banner from the format strings that print one. Since 6.1 there is a second banner without the number of
            // the build, which gives way to the other at link time but stays in the image (kernel: init/version.c).
            let numbered = |(_, number): (_, &str)| number.starts_with(|digit: char| digit.is_ascii_digit());
            if text.as_bytes().get(BANNER.len()).is_some_and(u8::is_ascii_digit) {
                if text.split_once(" #").is_some_and(numbered) {
                    return Ok(text);
                }
                first.get_or_insert(text);
            }
        }
    }
    first.ok_or(Failure::NotThere("the kernel image holds no banner"))
}

fn one_line(text: &[u8]) -> String {
    let end = memchr::memchr2(b'\n', 0, text).unwrap_or(text.len());
    String::from_utf8_lossy(text.get(..end).unwrap_or_default()).into_owned()
}

/// The kernel's own root table: where the symbols say, or (kernels whose table names code only) a page of the kernel's data that
/// maps the symbol table at `table`.
fn root<D: X86Driver>(vmi: &Vmi<D>, image: &KernelImage, symbols: &Symbols, table: Option<VirtAddr>) -> Option<PhysAddr> {
    let maps =
        |root: PhysAddr| image.mode.translate(vmi, root, image.start()).ok().map(|page| page.at) == image.locate(image.start());
    if let Some(named) = symbols.find("init_top_pgt").or_else(|| symbols.find("swapper_pg_dir")) {
        return image.locate(named.address).filter(|&root| maps(root));
    }
    let table = table?;
    candidates::roots_by_content(vmi, image.mode, image.locate(table)?, &[table]).into_iter().find(|&root| maps(root))
}
