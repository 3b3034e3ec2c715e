//! What the kernel keeps about drivers and system services.
//!
//! `MmUnloadedDrivers`: 50 records of a name, two addresses and a time, and `MmLastUnloadedDriver` counts (documented by the debugger's `lm u`; the records
//! as described in "Rootkits: unloaded drivers" threads and in Volatility's `unloadedmodules`). Service table: `KeServiceDescriptorTable` has the table, a
//! table of counters, the number of services and a table of argument sizes; 64-bit tables hold, since Windows Vista, offsets from the table itself in units
//! of 1/16 with the number of stack arguments in the low four bits.

use super::ground::{Ground, Writing};

/// An unloaded driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unloaded {
    /// File name.
    pub name: String,
    /// First address it had.
    pub start: u64,
    /// The address behind it.
    pub end: u64,
    /// FILETIME.
    pub time: u64,
}

/// A system service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its number.
    pub number: u32,
    /// Address of its function.
    pub function: u64,
    /// Whether the function is not in the kernel.
    pub hooked: bool,
}

/// Records that `MmUnloadedDrivers` has room for.
const RECORDS: u64 = 50;

/// Writes the unloaded drivers, the oldest first.
pub fn write_unloaded(ground: &mut impl Ground, drivers: &[Unloaded]) {
    let pointer = ground.pointer();
    let record = 4 * pointer + 8;
    let table = ground.allocate(b"MmUd", RECORDS * record);
    for (nth, driver) in drivers.iter().enumerate() {
        let at = table + nth as u64 * record;
        ground.put_string(at, &driver.name);
        ground.put_pointer(at + 2 * pointer, driver.start);
        ground.put_pointer(at + 3 * pointer, driver.end);
        ground.put(at + 4 * pointer, driver.time, 8);
    }
    if let Some(variable) = ground.variable("MmUnloadedDrivers", pointer) {
        ground.put_pointer(variable, table);
    }
    if let Some(variable) = ground.variable("MmLastUnloadedDriver", 4) {
        ground.put(variable, drivers.len() as u64, 4);
    }
}

/// Writes an array of callbacks: fast references to blocks of a run-down counter, a function and a context. Gives the functions that were entered.
pub fn write_callbacks(ground: &mut impl Ground, array: &str, functions: &[u64]) -> Vec<u64> {
    let pointer = ground.pointer();
    let Some(table) = ground.variable(array, 64 * pointer) else { return Vec::new() };
    for (nth, function) in functions.iter().enumerate() {
        let block = ground.allocate(b"Cbrb", 3 * pointer);
        ground.put_pointer(block, 0x20);
        ground.put_pointer(block + pointer, *function);
        let count = if ground.is_64_bit() { 0xF } else { 7 };
        ground.put_pointer(table + nth as u64 * pointer, block | count);
    }
    if let Some(variable) = ground.variable(&format!("{array}Count"), 4) {
        ground.put(variable, functions.len() as u64, 4);
    }
    functions.to_vec()
}

/// Writes a table with `count` services, one of which leads to `hook`.
pub fn write_services(ground: &mut impl Ground, count: u32, hooked: u32, hook: u64) -> Vec<Service> {
    let pointer = ground.pointer();
    let (base, size) = ground.kernel_image();
    let Some(table) = ground.variable("KiServiceTable", u64::from(count) * 4) else { return Vec::new() };
    let mut services = Vec::new();
    for number in 0..count {
        let inside = base + size / 2 + u64::from(number) * 0x80;
        let function = if number == hooked { hook } else { inside };
        let entry = if ground.is_64_bit() {
            // Offsets reach 128 MiB: a hook lies near the kernel, as those of drivers do.
            let offset = function.wrapping_sub(table) as i64;
            ((offset << 4) as u32 | number & 3).into()
        } else {
            function
        };
        ground.put(table + u64::from(number) * 4, entry, 4);
        services.push(Service { number, function, hooked: number == hooked });
    }
    let arguments = ground.variable("KiArgumentTable", u64::from(count)).unwrap_or(0);
    for variable in ["KeServiceDescriptorTable", "KeServiceDescriptorTableShadow"] {
        if let Some(at) = ground.variable(variable, 8 * pointer) {
            ground.put_pointer(at, table);
            ground.put_pointer(at + 2 * pointer, count.into());
            ground.put_pointer(at + 3 * pointer, arguments);
        }
    }
    if let Some(at) = ground.variable("KiServiceLimit", 4) {
        ground.put(at, count.into(), 4);
    }
    services
}
