//! The words of Python for what can be asked for and what happened: accesses, registers, abilities, incidents.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use vmi::x86::{ControlRegister, Incident, Watch};
use vmi::{AccessOrigin, Accesses, EventAbility, MemoryAccess, VirtAddr};

/// Control registers by name.
const REGISTERS: [(&str, ControlRegister); 4] = [
    ("cr0", ControlRegister::Cr0),
    ("cr3", ControlRegister::Cr3),
    ("cr4", ControlRegister::Cr4),
    ("xcr0", ControlRegister::Xcr0),
];

/// What is watched without further words, by the kind of its events.
const WATCHES: [(&str, Watch); 8] = [
    ("cpuid", Watch::Cpuid),
    ("debug exception", Watch::DebugExceptions),
    ("own breakpoint", Watch::Breakpoints),
    ("descriptor table", Watch::DescriptorTables),
    ("guest request", Watch::GuestRequests),
    ("privileged call", Watch::PrivilegedCalls),
    ("emulation failure", Watch::EmulationFailures),
    ("exit", Watch::Exits),
];

fn named<T: Copy>(all: &[(&str, T)], name: &str, what: &str) -> PyResult<T> {
    let found = all.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let known: Vec<&str> = all.iter().map(|(known, _)| *known).collect();
        PyValueError::new_err(format!("no {what} `{name}`: {}", known.join(", ")))
    })
}

/// Accesses as letters: some of "rwx".
pub(crate) fn accesses(letters: &str) -> PyResult<Accesses> {
    letters.chars().try_fold(Accesses::NONE, |all, letter| {
        Ok(all.or(match letter {
            'r' => Accesses::READ,
            'w' => Accesses::WRITE,
            'x' => Accesses::EXECUTE,
            _ => return Err(PyValueError::new_err(format!("no access `{letter}` in `{letters}`: r, w, x"))),
        }))
    })
}

/// A control register by its name.
pub(crate) fn control_register(name: &str) -> PyResult<ControlRegister> {
    named(&REGISTERS, name, "control register")
}

/// What the processor does of its own, by the kind of the events.
pub(crate) fn watch(kind: &str) -> PyResult<Watch> {
    named(&WATCHES, kind, "kind of event")
}

/// The name of an ability.
pub(crate) fn ability(ability: EventAbility) -> &'static str {
    match ability {
        EventAbility::SoftwareBreakpoint => "software_breakpoint",
        EventAbility::HardwareBreakpoint => "hardware_breakpoint",
        EventAbility::Watchpoint => "watchpoint",
        EventAbility::MemoryAccess => "memory_access",
        EventAbility::Instructions => "instructions",
        EventAbility::ControlRegister => "control_register",
        EventAbility::ModelRegister => "msr",
        EventAbility::Identification => "cpuid",
        EventAbility::DebugException => "debug_exception",
        EventAbility::GuestBreakpoint => "own_breakpoint",
        EventAbility::PrivilegedCall => "privileged_call",
        EventAbility::GuestRequest => "guest_request",
        EventAbility::Interrupt => "interrupt",
        EventAbility::DescriptorTable => "descriptor_table",
        EventAbility::EmulationFailure => "emulation_failure",
        EventAbility::Exit => "exit",
        EventAbility::SetRegisters => "set_registers",
        EventAbility::Step => "step",
        EventAbility::Deny => "deny",
        EventAbility::Emulate => "emulate",
        EventAbility::Reinject => "reinject",
        EventAbility::View => "view",
        EventAbility::Inject => "inject",
        _ => "other",
    }
}

/// What is told of an access of guest-physical memory.
pub(crate) fn of_access<'py>(py: Python<'py>, access: &MemoryAccess) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("access", access.kinds.to_string().replace('-', ""))?;
    dict.set_item("linear", access.linear.map(VirtAddr::get))?;
    dict.set_item("origin", access.origin.map(|origin| if origin == AccessOrigin::Walk { "walk" } else { "linear" }))?;
    dict.set_item("view", access.view.map(|view| view.0))?;
    Ok(dict)
}

/// What is told of what the processor did.
pub(crate) fn of_incident<'py>(py: Python<'py>, incident: &Incident) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    match *incident {
        Incident::ControlRegister { register, new, old } => {
            dict.set_item("register", register.to_string())?;
            dict.set_item("new", new)?;
            dict.set_item("old", old)?;
        }
        Incident::Msr { index, new, old } => {
            dict.set_item("index", index)?;
            dict.set_item("new", new)?;
            dict.set_item("old", old)?;
        }
        Incident::Cpuid { leaf, subleaf, length } => {
            dict.set_item("leaf", leaf)?;
            dict.set_item("subleaf", subleaf)?;
            dict.set_item("length", length)?;
        }
        Incident::DebugException { kind, length, pending } => {
            dict.set_item("vmx_kind", kind)?;
            dict.set_item("length", length)?;
            dict.set_item("pending", pending)?;
        }
        Incident::Breakpoint { kind, length } => {
            dict.set_item("vmx_kind", kind)?;
            dict.set_item("length", length)?;
        }
        Incident::DescriptorTable { table, write } => {
            dict.set_item("table", format!("{table:?}").to_lowercase())?;
            dict.set_item("write", write)?;
        }
        Incident::Interrupt { vector, kind, error_code, cr2 } => {
            dict.set_item("vector", vector)?;
            dict.set_item("vmx_kind", kind)?;
            dict.set_item("error_code", error_code)?;
            dict.set_item("cr2", cr2)?;
        }
        Incident::Exit { reason, qualification } => {
            dict.set_item("reason", reason)?;
            dict.set_item("qualification", qualification)?;
        }
        Incident::Other(number) => dict.set_item("number", number)?,
        _ => {}
    }
    Ok(dict)
}
