//! `System.map` and `/proc/kallsyms`: one symbol a line, `address type name`, and in the latter `[module]` after those of modules.

use vmi_core::{Symbols, SymbolsBuilder, VirtAddr};

/// Symbols below this address are offsets of per-CPU variables and absolute values, which do not move with the kernel: on x86-64 the
/// per-CPU area was linked at 0 until 6.14, and kernels of 32 bits begin above it.
pub(super) const SLIDES_FROM: u64 = 16 << 20;

/// Why a text is not a symbol list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SystemMapError {
    /// A line that is not `address type name` or `address type name [module]`.
    #[error("line {line} of the symbol list is not `address type name [module]`: {text:?}")]
    Line {
        /// Number of the line, from 1.
        line: usize,
        /// Its beginning.
        text: String,
    },
    /// A name that is longer than any name can be.
    #[error("the name in line {line} of the symbol list does not fit")]
    Name {
        /// Number of the line, from 1.
        line: usize,
    },
    /// No symbols.
    #[error("the symbol list is empty")]
    Empty,
    /// `/proc/kallsyms` as a user without privileges sees it.
    #[error("all addresses of the symbol list are zero: read /proc/kallsyms as root, with kernel.kptr_restrict below 2")]
    Hidden,
}

/// The symbols of a `System.map` or a copy of `/proc/kallsyms`, moved by `slide` (0 for what a running kernel said of itself).
///
/// # Errors
/// [`SystemMapError`] with the number of the first line that is wrong.
pub fn parse(text: &[u8], slide: u64) -> Result<Symbols, SystemMapError> {
    let mut builder = SymbolsBuilder::default();
    // The shortest line that there can be has five bytes, the mean of real lists is above forty.
    builder.reserve(text.len() / 40);
    let mut of_modules = Vec::new();
    let (mut empty, mut hidden) = (true, true);
    for (line, bytes) in (1..).zip(text.split(|&byte| byte == b'\n')) {
        let bytes = bytes.trim_ascii_end();
        if bytes.is_empty() {
            continue;
        }
        let parsed = core::str::from_utf8(bytes).ok().and_then(Line::parse);
        let Some(parsed) = parsed else {
            let text = String::from_utf8_lossy(bytes.get(..80).unwrap_or(bytes)).into_owned();
            return Err(SystemMapError::Line { line, text });
        };
        (empty, hidden) = (false, hidden && parsed.address == 0);
        match parsed.module {
            Some(module) => of_modules.push((module, line, parsed)),
            None => push(&mut builder, &parsed, line, slide)?,
        }
    }
    // A list sorted by address mixes the modules: those of one module come together here, in the order they had.
    of_modules.sort_by_key(|&(module, ..)| module);
    let mut current = None;
    for (module, line, parsed) in of_modules {
        if current != Some(module) {
            builder.module(module);
            current = Some(module);
        }
        push(&mut builder, &parsed, line, slide)?;
    }
    match (empty, hidden) {
        (true, _) => Err(SystemMapError::Empty),
        (_, true) => Err(SystemMapError::Hidden),
        _ => Ok(builder.build()),
    }
}

fn push(builder: &mut SymbolsBuilder, line: &Line<'_>, number: usize, slide: u64) -> Result<(), SystemMapError> {
    let address = VirtAddr::new(slid(line.address, slide));
    if builder.push(line.name, address, line.kind) { Ok(()) } else { Err(SystemMapError::Name { line: number }) }
}

/// Where a symbol linked at `address` is in a kernel that was moved by `slide`.
pub(super) fn slid(address: u64, slide: u64) -> u64 {
    if address < SLIDES_FROM { address } else { address.wrapping_add(slide) }
}

struct Line<'t> {
    address: u64,
    kind: u8,
    name: &'t str,
    module: Option<&'t str>,
}

impl<'t> Line<'t> {
    fn parse(line: &'t str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (address, kind, name, module) = (words.next()?, words.next()?, words.next()?, words.next());
        // from_str_radix would take a sign.
        if words.next().is_some() || !address.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let module = match module {
            Some(module) => Some(module.strip_prefix('[')?.strip_suffix(']')?),
            None => None,
        };
        let &[kind] = kind.as_bytes() else { return None };
        Some(Self { address: u64::from_str_radix(address, 16).ok()?, kind, name, module })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAP: &str = "\
0000000000000000 A fixed_percpu_data
0000000000001000 D cpu_debug_store
ffffffff81000000 T _text
ffffffff82001000 D init_task
ffffffffc0400000 t init_module\t[dummy]
ffffffffc0300000 t helper\t[loop]
ffffffffc0400010 t cleanup_module\t[dummy]
ffffffff83000000 B _end
";

    #[test]
    fn kernel_and_module_symbols_slide_and_offsets_do_not() {
        let symbols = parse(MAP.as_bytes(), 0x10_0000).unwrap();
        assert_eq!(symbols.len(), 8);
        let find = |name| symbols.find(name).unwrap();
        assert_eq!((find("_text").address, find("_text").kind), (VirtAddr::new(0xffff_ffff_8110_0000), b'T'));
        assert_eq!(find("cpu_debug_store").address, VirtAddr::new(0x1000));
        assert_eq!((find("_end").module, find("helper").module), (None, Some("loop")));
        assert_eq!([find("init_module").module, find("cleanup_module").module], [Some("dummy"); 2]);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let wrong = |line: &str| {
            let text = format!("ffffffff81000000 T _text\n\n{line}\n");
            assert!(matches!(parse(text.as_bytes(), 0), Err(SystemMapError::Line { line: 3, .. })), "{line}");
        };
        for line in
            ["x", "12 T", "g2 T a", "+12 T a", "12 TT a", "12 T a b", "12 T a [b", "12 T a [b] c", "11112222333344445 T a"]
        {
            wrong(line);
        }
        assert!(matches!(parse(b"12 T a\n12 T \xff", 0), Err(SystemMapError::Line { line: 2, .. })));
        assert_eq!(parse(b"\n\n", 0).unwrap_err(), SystemMapError::Empty);
        assert_eq!(parse(b"0 T a\n0000 D b\n", 0).unwrap_err(), SystemMapError::Hidden);
        let long = format!("12 T {}", "a".repeat(70_000));
        assert_eq!(parse(long.as_bytes(), 0).unwrap_err(), SystemMapError::Name { line: 1 });
    }

    #[test]
    fn windows_line_ends_and_a_missing_last_one_do_not_matter() {
        let symbols = parse(b"12345678 T a\r\n12345679 t b", 0).unwrap();
        assert_eq!(symbols.iter().map(|symbol| symbol.name).collect::<Vec<_>>(), ["a", "b"]);
    }

    proptest! {
        #[test]
        fn every_line_written_is_read(rows in prop::collection::vec((1u64.., "[A-Za-z]", "[a-z_.$0-9]{1,20}", prop::option::of("[a-z_]{1,8}")), 1..40)) {
            let line = |(address, kind, name, module): &(u64, String, String, Option<String>)| match module {
                Some(module) => format!("{address:016x} {kind} {name}\t[{module}]\n"),
                None => format!("{address:016x} {kind} {name}\n"),
            };
            let symbols = parse(rows.iter().map(line).collect::<String>().as_bytes(), 0).unwrap();
            prop_assert_eq!(symbols.len(), rows.len());
            for (address, kind, name, module) in &rows {
                let found = symbols.all(name).any(|symbol| {
                    symbol.address.get() == *address && symbol.kind == kind.as_bytes()[0] && symbol.module == module.as_deref()
                });
                prop_assert!(found, "{}", name);
            }
        }

        #[test]
        fn mutated_lists_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), slide: u64) {
            let mut bytes = MAP.as_bytes().to_vec();
            for (at, value) in edits {
                *at.get_mut(&mut bytes) = value;
            }
            let _ = parse(&bytes, slide);
        }
    }
}
