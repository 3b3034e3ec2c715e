//! The kernel's symbols, both ways.

use core::ffi::c_char;
use core::mem::MaybeUninit;
use core::ptr;
use std::ffi::CString;

use vmi::{Guest as _, VirtAddr};

use crate::border::{self, Text};
use crate::error::{Failure, vmi_error, vmi_status};
use crate::guest::vmi_guest;
use crate::rows::{self, List, Row};
use crate::table::{self, Handle};

/// Symbols. Any thread may use it; each row is given once.
#[derive(Debug)]
pub struct vmi_symbols {
    _opaque: [u8; 0],
}

impl Handle for vmi_symbols {
    type Object = List<SymbolRow>;
}

/// A symbol. Its strings belong to the list: valid until that is closed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_symbol {
    /// Name.
    pub name: *const c_char,
    /// The module that defines it; NULL for the kernel itself.
    pub module: *const c_char,
    /// Address in the guest.
    pub address: u64,
    /// The letter of nm(1).
    pub kind: c_char,
}

/// A symbol in a list.
#[derive(Debug)]
pub struct SymbolRow {
    name: CString,
    module: Option<CString>,
    address: u64,
    kind: u8,
}

impl From<vmi::Symbol<'_>> for SymbolRow {
    fn from(symbol: vmi::Symbol<'_>) -> Self {
        Self {
            name: border::c_string(symbol.name),
            module: symbol.module.map(border::c_string),
            address: symbol.address.get(),
            kind: symbol.kind,
        }
    }
}

impl Row for SymbolRow {
    const LIST: &'static str = "vmi_symbols";
    type C = vmi_symbol;

    fn c(&self) -> vmi_symbol {
        vmi_symbol {
            name: self.name.as_ptr(),
            module: self.module.as_ref().map_or(ptr::null(), |module| module.as_ptr()),
            address: self.address,
            kind: self.kind as c_char,
        }
    }
}

fn symbols<'s>(found: impl Iterator<Item = vmi::Symbol<'s>>) -> List<SymbolRow> {
    List::new(found.map(|symbol| Ok(symbol.into())).collect())
}

/// The address of a symbol: "init_task", "init_task+0x10". Of several of a name, the kernel's own with the lowest address.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_get_address(
    guest: *mut vmi_guest,
    symbol: Text,
    address: Option<&mut MaybeUninit<u64>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::place(address, "the place for the address")?;
        place.write(table::get(guest)?.address(symbol.required("the symbol")?)?);
        Ok(())
    })
}

/// Every symbol of a name, its modules' included; all symbols, ascending by address, if `name` is NULL. Closed with vmi_symbols_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_list_symbols(
    guest: *mut vmi_guest,
    name: Text,
    found: Option<&mut MaybeUninit<*mut vmi_symbols>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let slot = border::slot(found)?;
        let guest = table::get(guest)?;
        let all = guest.guest.symbols();
        slot.put(match name.bytes() {
            None => symbols(all.iter()),
            Some(_) => symbols(all.all(name.required("the name")?)),
        })
    })
}

/// All symbols at exactly an address. Closed with vmi_symbols_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_list_symbols_at(
    guest: *mut vmi_guest,
    at: u64,
    found: Option<&mut MaybeUninit<*mut vmi_symbols>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let slot = border::slot(found)?;
        slot.put(symbols(table::get(guest)?.guest.symbols().at(VirtAddr::new(at))))
    })
}

/// The name of the last symbol at or below an address, freed with vmi_string_free, and how far above it the address is. VMI_STATUS_NO_SYMBOL if there is none.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_get_nearest_symbol(
    guest: *mut vmi_guest,
    at: u64,
    name: Option<&mut MaybeUninit<*mut c_char>>,
    offset: Option<&mut MaybeUninit<u64>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let name = border::text_place(name)?;
        let offset = border::place(offset, "the place for the offset")?;
        let guest = table::get(guest)?;
        let none = || Failure::new(vmi_status::NoSymbol, format!("no symbol at or below {at:#x}"));
        let (symbol, above) = guest.guest.symbols().nearest(VirtAddr::new(at)).ok_or_else(none)?;
        offset.write(above);
        name.write(border::owned(border::c_string(symbol.name)));
        Ok(())
    })
}

/// The next symbol; see vmi_processes_next.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_symbols_next(
    symbols: *mut vmi_symbols,
    symbol: Option<&mut MaybeUninit<vmi_symbol>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    rows::next(symbols, symbol, error)
}

/// Closes a list and frees its strings. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_symbols_close(symbols: *mut vmi_symbols) {
    border::plain((), || table::close(symbols));
}
