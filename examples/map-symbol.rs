//! Finds the address of a kernel symbol, or the symbol of an address.

mod common;

use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use common::table::{Column, Row};
use common::text::{Bytes, Hex, hexdump};
use common::{Common, EXIT_CODES};
use serde::Serialize;
use vmi::{Guest, Symbol, VirtAddr};

/// Find the address of a kernel symbol, or the symbol of an address
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  map-symbol init_task guest.lime                where init_task is
  map-symbol 0xffffffff81001234 guest.lime       the nearest symbol at or below the address
  map-symbol 'tcp_*' guest.lime                  every symbol whose name starts so
  map-symbol '*' guest.lime                      all symbols, as in /proc/kallsyms
  map-symbol linux_banner --bytes 64 guest.lime  with what is there in memory

{EXIT_CODES}"))]
struct Args {
    /// Name, name with `*` for any characters, or address (0x...)
    symbol: String,
    /// Dump so many bytes of memory at each address
    #[arg(long, short, value_name = "COUNT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1 << 20))]
    bytes: u32,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let vmi = args.common.open()?;
        let guest = args.common.attach(&vmi)?;
        let mut table = args.common.table(SymbolRow::COLUMNS);
        let mut found = false;
        for (symbol, offset) in find(&*guest, &args.symbol) {
            found = true;
            table.row(SymbolRow::new(&*guest, symbol, offset, args.bytes))?;
        }
        if !found {
            bail!("none of {} symbols is or matches `{}`", guest.symbols().len(), args.symbol);
        }
        table.finish()
    })
}

/// The symbols that `query` means, each with the offset of the address that is meant.
fn find<'g>(guest: &'g dyn Guest, query: &'g str) -> Box<dyn Iterator<Item = (Symbol<'g>, u64)> + 'g> {
    let symbols = guest.symbols();
    if query.starts_with("0x")
        && let Ok(address) = query.parse::<VirtAddr>()
    {
        return Box::new(symbols.nearest(address).into_iter());
    }
    if query.contains('*') {
        return Box::new(symbols.iter().filter(|symbol| matches(query, symbol.name)).map(|symbol| (symbol, 0)));
    }
    Box::new(symbols.all(query).map(|symbol| (symbol, 0)))
}

/// Whether `name` is `pattern`, in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(start) else { return false };
    let Some((middle, end)) = rest.rsplit_once('*') else { return name.ends_with(rest) };
    for part in middle.split('*') {
        let Some(at) = name.find(part) else { return false };
        name = &name[at + part.len()..];
    }
    name.ends_with(end)
}

#[derive(Serialize)]
struct SymbolRow<'g> {
    address: Hex,
    kind: char,
    name: &'g str,
    offset: u64,
    module: Option<&'g str>,
    bytes: Option<Bytes>,
}

impl<'g> SymbolRow<'g> {
    const COLUMNS: &'static [Column] = &[("address", 18), ("kind", 4), ("name", 40), ("module", 0)];

    fn new(guest: &dyn Guest, symbol: Symbol<'g>, offset: u64, count: u32) -> vmi::Result<Self> {
        let address = symbol.address.wrapping_add(offset);
        // Not all symbols are addresses: those of per-CPU variables are offsets, others are sizes.
        let mut bytes = (count > 0).then(|| vec![0; count as usize]);
        if let Some(bytes) = &mut bytes {
            guest.read_virtual(None, address, bytes)?;
        }
        Ok(Self {
            address: Hex(address.get()),
            kind: symbol.kind.into(),
            name: symbol.name,
            offset,
            module: symbol.module,
            bytes: bytes.map(Bytes),
        })
    }
}

impl Row for SymbolRow<'_> {
    fn cells(&self) -> Vec<String> {
        let offset = if self.offset > 0 { format!("+{:#x}", self.offset) } else { String::new() };
        let module = self.module.map_or_else(String::new, |module| format!("[{module}]"));
        vec![self.address.to_string(), self.kind.to_string(), format!("{}{offset}", self.name), module]
    }

    fn below(&self) -> String {
        self.bytes.as_ref().map_or_else(String::new, |bytes| hexdump(self.address.0, &bytes.0))
    }
}
