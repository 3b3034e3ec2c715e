//! Layouts of the kernel's structures.

use core::ffi::c_char;
use core::mem::MaybeUninit;

use crate::border::{self, Text};
use crate::error::{vmi_error, vmi_status};
use crate::guest::vmi_guest;
use crate::rows::{self, vmi_strings};
use crate::table;

/// Where a member is in its structure.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct vmi_field {
    /// Offset in bytes from the start of the outermost structure.
    pub offset: u64,
    /// Size in bytes; of a bitfield, of the bytes that hold all of its bits.
    pub size: u64,
    /// Of a bitfield: its lowest bit in the little-endian number at `offset`.
    pub bit_offset: u32,
    /// Of a bitfield: its width in bits; 0 of other members.
    pub bit_width: u32,
}

/// Where a member is in a structure of the kernel: "task_struct", "se.sum_exec_runtime". Members of anonymous structures are found too.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_get_field(
    guest: *mut vmi_guest,
    structure: Text,
    member: Text,
    field: Option<&mut MaybeUninit<vmi_field>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::place(field, "the place for the field")?;
        let guest = table::get(guest)?;
        let found = guest.guest.types().field(structure.required("the structure")?, member.required("the member")?)?;
        let (bit_offset, bit_width) = found.bits.unwrap_or((0, 0));
        place.write(vmi_field { offset: found.offset, size: found.size, bit_offset, bit_width });
        Ok(())
    })
}

/// The name of a member's type, as in C but for the order of its parts: "struct list_head", "struct mm_struct *". Freed with vmi_string_free.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_get_type_name(
    guest: *mut vmi_guest,
    structure: Text,
    member: Text,
    name: Option<&mut MaybeUninit<*mut c_char>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::text_place(name)?;
        let guest = table::get(guest)?;
        let types = guest.guest.types();
        let field = types.field(structure.required("the structure")?, member.required("the member")?)?;
        place.write(border::owned(border::c_string(&vmi::type_name(types, field.ty)?)));
        Ok(())
    })
}

/// The size of a structure or union of the kernel, in bytes.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_get_size(
    guest: *mut vmi_guest,
    structure: Text,
    size: Option<&mut MaybeUninit<u64>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::place(size, "the place for the size")?;
        place.write(table::get(guest)?.guest.types().structure(structure.required("the structure")?)?.size);
        Ok(())
    })
}

/// The value of a constant of an enumeration of the kernel.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_get_constant(
    guest: *mut vmi_guest,
    enumeration: Text,
    name: Text,
    value: Option<&mut MaybeUninit<i64>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::place(value, "the place for the value")?;
        let guest = table::get(guest)?;
        place.write(guest.guest.types().constant(enumeration.required("the enumeration")?, name.required("the name")?)?);
        Ok(())
    })
}

/// The names of all structures and unions that are described. Closed with vmi_strings_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_list_structures(
    guest: *mut vmi_guest,
    names: Option<&mut MaybeUninit<*mut vmi_strings>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let slot = border::slot(names)?;
        let guest = table::get(guest)?;
        slot.put(rows::strings(guest.guest.types().structures()))
    })
}

/// Bytes in a pointer of the kernel.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_get_pointer_size(
    guest: *mut vmi_guest,
    size: Option<&mut MaybeUninit<u64>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        border::place(size, "the place for the size")?.write(table::get(guest)?.guest.types().pointer_size());
        Ok(())
    })
}
