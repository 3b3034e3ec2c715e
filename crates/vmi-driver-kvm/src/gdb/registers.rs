//! Between a stub's registers and [`Registers`].

use vmi_arch_x86::{Registers, Segment};

use super::layout::{Layout, Place};

/// A register that a stub may show: its names there for 64 and for 32 bits, and its place in [`Registers`].
pub(super) struct Field {
    wide: &'static str,
    narrow: &'static str,
    pub(super) get: fn(&Registers) -> Option<u64>,
    set: fn(&mut Registers, u64),
}

impl Field {
    /// The name in messages.
    pub(super) fn name(&self) -> &'static str {
        self.wide
    }

    pub(super) fn place(&self, layout: &Layout) -> Option<Place> {
        self.stub_name(layout).and_then(|name| layout.place(name))
    }

    fn stub_name(&self, layout: &Layout) -> Option<&'static str> {
        let names = if layout.place("rip").is_some() { [self.wide, ""] } else { ["", self.narrow] };
        names.into_iter().find(|name| !name.is_empty() && layout.place(name).is_some())
    }
}

macro_rules! general {
    ($wide:ident, $narrow:literal) => {
        Field { wide: stringify!($wide), narrow: $narrow, get: |r| Some(r.$wide), set: |r, value| r.$wide = value }
    };
}

macro_rules! system {
    ($wide:literal, $narrow:literal, $field:ident) => {
        Field { wide: $wide, narrow: $narrow, get: |r| r.$field, set: |r, value| r.$field = Some(value) }
    };
}

macro_rules! selector {
    ($name:ident) => {
        Field {
            wide: stringify!($name),
            narrow: stringify!($name),
            get: |r| r.segments.$name.map(|segment| u64::from(segment.selector)),
            set: |r, value| r.segments.$name.get_or_insert_default().selector = (value & 0xffff) as u16,
        }
    };
}

macro_rules! base {
    ($name:literal, $segment:ident) => {
        Field {
            wide: $name,
            narrow: $name,
            get: |r| r.segments.$segment.map(|segment| segment.base),
            set: |r, value| r.segments.$segment.get_or_insert_default().base = value,
        }
    };
}

/// All that QEMU's stub shows of [`Registers`] (gdb-xml/i386-64bit.xml and i386-32bit.xml of QEMU 7.2). Control registers come first and bases
/// behind selectors, because a write to those changes what one to these means.
pub(super) const FIELDS: &[Field] = &[
    system!("efer", "efer", efer),
    system!("cr0", "cr0", cr0),
    system!("cr2", "cr2", cr2),
    system!("cr3", "cr3", cr3),
    system!("cr4", "cr4", cr4),
    system!("cr8", "cr8", cr8),
    selector!(cs),
    selector!(ss),
    selector!(ds),
    selector!(es),
    selector!(fs),
    selector!(gs),
    base!("fs_base", fs),
    base!("gs_base", gs),
    // The 32-bit QEMU shows a register of this name that is always zero (target/i386/gdbstub.c).
    system!("k_gs_base", "", kernel_gs_base),
    general!(rax, "eax"),
    general!(rbx, "ebx"),
    general!(rcx, "ecx"),
    general!(rdx, "edx"),
    general!(rsi, "esi"),
    general!(rdi, "edi"),
    general!(rbp, "ebp"),
    general!(rsp, "esp"),
    general!(r8, ""),
    general!(r9, ""),
    general!(r10, ""),
    general!(r11, ""),
    general!(r12, ""),
    general!(r13, ""),
    general!(r14, ""),
    general!(r15, ""),
    general!(rip, "eip"),
    // 64 bits wide in the processor, 32 in every stub: the upper half is zero.
    Field { wide: "eflags", narrow: "eflags", get: |r| Some(r.rflags), set: |r, value| r.rflags = value },
];

/// The registers of an answer to `g`.
pub(super) fn decode(layout: &Layout, answer: &[u8]) -> Registers {
    let mut registers = Registers::default();
    for field in FIELDS {
        if let Some(value) = field.stub_name(layout).and_then(|name| layout.value(name, answer)) {
            (field.set)(&mut registers, value);
        }
    }
    registers
}

/// The fields that have a value which no stub can take.
pub(super) fn untold(wanted: &Registers, layout: &Layout) -> Vec<&'static str> {
    let s = &wanted.segments;
    let hidden = |segment: Option<Segment>| segment.is_some_and(|segment| segment.attributes.is_some());
    let beyond = [
        ("gdtr", wanted.gdtr.is_some()),
        ("idtr", wanted.idtr.is_some()),
        ("ldt", s.ldt.is_some()),
        ("tr", s.tr.is_some()),
        ("limits and attributes of segments", [s.cs, s.ss, s.ds, s.es, s.fs, s.gs].into_iter().any(hidden)),
        ("xcr0", wanted.xcr0.is_some()),
        ("dr", wanted.dr.is_some()),
        ("star", wanted.star.is_some()),
        ("lstar", wanted.lstar.is_some()),
        ("cstar", wanted.cstar.is_some()),
        ("sfmask", wanted.sfmask.is_some()),
        ("pat", wanted.pat.is_some()),
        ("sysenter_cs", wanted.sysenter_cs.is_some()),
        ("sysenter_esp", wanted.sysenter_esp.is_some()),
        ("sysenter_eip", wanted.sysenter_eip.is_some()),
    ];
    let missing = FIELDS.iter().filter(|field| field.place(layout).is_none());
    // Registers that 32-bit machines do not have are zero, not absent.
    let missing = missing.filter(|field| (field.get)(wanted).is_some_and(|value| value != 0)).map(Field::name);
    missing.chain(beyond.into_iter().filter(|(_, told)| *told).map(|(name, _)| name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_without_description() {
        let layout = Layout::without_description(0x218).unwrap();
        let mut bytes = vec![0_u8; 0x218];
        for (at, byte) in bytes.iter_mut().enumerate().take(128).step_by(8) {
            *byte = (at / 8 + 1) as u8;
        }
        bytes[128..136].copy_from_slice(&0xffff_ffff_8100_0000_u64.to_le_bytes());
        bytes[136] = 0x46;
        bytes[140] = 0x33;
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let registers = decode(&layout, text.as_bytes());
        assert_eq!((registers.rax, registers.rbp, registers.rsp, registers.r15), (1, 7, 8, 16));
        assert_eq!((registers.rip, registers.rflags), (0xffff_ffff_8100_0000, 0x46));
        assert_eq!(registers.segments.cs.unwrap().selector, 0x33);
        assert_eq!((registers.cr3, registers.efer, registers.lstar), (None, None, None));
        assert_eq!(untold(&registers, &layout), [] as [&str; 0]);
        let mut wanted = registers;
        (wanted.cr3, wanted.dr) = (Some(0x1000), Some([0; 8]));
        assert_eq!(untold(&wanted, &layout), ["cr3", "dr"]);
    }
}
