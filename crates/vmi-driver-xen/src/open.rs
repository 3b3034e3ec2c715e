//! From a name to a domain that can be read.

use std::sync::Arc;

use vmi_core::{Liveness, MachineInfo, MemoryMap};

use crate::domain_info::DomainKind;
use crate::domains::{self, Domain};
use crate::driver::Parts;
use crate::execution::Execution;
use crate::failure::Failures;
use crate::foreign_memory::{DomainCheck, Frames, GuestMemory, Limits, XenMapper};
use crate::frames::{Machine, Paravirtual, Same};
use crate::libraries::control::Control;
use crate::libraries::foreign_memory::ForeignMemory;
use crate::memory_map::{Frame, Look, is_memory};
use crate::{CallError, OpenError, Options, memory_map};

/// Words of a domain's interface: only 64-bit PV domains are understood.
const WIDE: u32 = 8;

pub(crate) fn open(text: &str, options: &Options) -> Result<Parts, OpenError> {
    let control = Arc::new(Control::open()?);
    let domain = domains::find(&control, domains::names().as_ref(), text)?;
    if domain.info.dying {
        return Err(OpenError::Dying { domain: domain.to_string() });
    }
    let kind = domain.info.kind;
    let name = format!("Xen domain {domain} ({kind})");
    let failures = Failures::new(&name);
    let memory = ForeignMemory::open()?;
    let number = domain.info.id;
    // Numbers of domains have 15 bits (xen.h, DOMID_FIRST_RESERVED).
    let short = u16::try_from(number).map_err(|_| OpenError::Dying { domain: domain.to_string() })?;

    let (map, frames, paravirtual): (_, Box<dyn Frames>, _) = match kind {
        DomainKind::Hardware => (hardware_map(&control, &memory, &domain, &failures)?, Box::new(Same), None),
        DomainKind::Paravirtual => {
            let width = control.guest_width(number).map_err(|error| call(&domain, "asking for its width", error))?;
            if width != WIDE {
                return Err(OpenError::Narrow { domain: domain.to_string(), width });
            }
            let machine = Machine { memory: Arc::clone(&memory), domain: number, failures: failures.clone() };
            let list = Paravirtual::new(machine, domain.info.shared_info_frame, domain.info.pages)
                .map_err(|source| OpenError::Frames { domain: domain.to_string(), source })?;
            let list = Arc::new(list);
            (MemoryMap::new(list.regions()), Box::new(Arc::clone(&list)), Some(list))
        }
    };
    let check = is_there(&control, &domain, &failures);
    let mapper = XenMapper { memory, domain: number, failures: failures.clone(), check };
    let limits = if options.map_whole { Limits::NONE } else { options.limits };
    let execution = Execution::new(Arc::clone(&control), short, options.guardian, failures.clone());
    let mut memory = GuestMemory::new(mapper, frames, failures.clone(), limits, &map).map_err(OpenError::Map)?;
    if options.map_whole {
        memory.map_whole(&map).map_err(OpenError::Map)?;
    }
    Ok(Parts {
        machine: MachineInfo { name, memory: map, liveness: Liveness::Live, notes: Vec::new() },
        memory,
        paravirtual,
        execution,
        control,
        failures,
        domain,
    })
}

fn call(domain: &Domain, action: &'static str, source: CallError) -> OpenError {
    OpenError::Call { domain: domain.to_string(), kind: domain.info.kind, action, source }
}

/// Asks Xen whether the domain is still there, and the same one.
fn is_there(control: &Arc<Control>, domain: &Domain, failures: &Failures) -> DomainCheck {
    let (control, failures, id, uuid) = (Arc::clone(control), failures.clone(), domain.info.id, domain.info.uuid);
    DomainCheck(Box::new(move || {
        let info = control.domain_from(id).map_err(|error| failures.call("asking whether it lives", error))?;
        match info.filter(|info| info.id == id && info.uuid == uuid) {
            None => Err(failures.ended("Xen knows no domain of its number any more")),
            Some(info) if info.dying => Err(failures.ended("it is being destroyed")),
            Some(_) => Ok(()),
        }
    }))
}

/// The memory map of an HVM or PVH domain.
fn hardware_map(
    control: &Control,
    memory: &Arc<ForeignMemory>,
    domain: &Domain,
    failures: &Failures,
) -> Result<MemoryMap, OpenError> {
    let number = domain.info.id;
    let last = last_frame(control, domain)?;
    memory_map::find(domain.info.pages, last, |range, look| {
        let mut kinds: Vec<u64> = range.clone().collect();
        let typed = control.page_types(number, &mut kinds);
        let known = typed.transpose().map_err(|error| call(domain, "asking for the types of its pages", error))?.is_some();
        let mut frames: Vec<Frame> = match known {
            true => kinds.into_iter().map(|kind| if is_memory(kind) { Frame::Page } else { Frame::None }).collect(),
            // A library that does not offer it: what can be mapped is there.
            false => vec![Frame::None; kinds.len()],
        };
        if known && look == Look::Types {
            return Ok(frames);
        }
        let rest: Vec<u64> = range.zip(&frames).filter(|(_, frame)| **frame == Frame::None).map(|(number, _)| number).collect();
        if !rest.is_empty() {
            let mapped = memory.map(number, &rest, false);
            let mapped = mapped.map_err(|error| OpenError::Map(failures.call("looking for its memory", error)))?;
            let what = if known { Frame::Xens } else { Frame::Page };
            for (index, frame) in frames.iter_mut().filter(|frame| **frame == Frame::None).enumerate() {
                if mapped.is_there(index) {
                    *frame = what;
                }
            }
        }
        Ok(frames)
    })
}

/// The highest frame number in use, by the crate `xenctrl` where it finds its library.
fn last_frame(control: &Control, domain: &Domain) -> Result<u64, OpenError> {
    let number = domain.info.id;
    if let Ok(last) = xenctrl::XenControl::new_default().and_then(|toolstack| toolstack.domain_maximum_gpfn(number)) {
        return Ok(last);
    }
    control.maximum_gpfn(number).map_err(|error| call(domain, "asking for its last frame", error))
}
