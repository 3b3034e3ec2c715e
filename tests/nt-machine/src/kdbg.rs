//! The debugger's data: `DBGKD_GET_VERSION64` and `KDDEBUGGER_DATA64`, in clear or encoded. Their members' places are documented in wdbgexts.h.

use crate::NtMachine;
use crate::memory::PAGE;
use crate::options::Kdbg;

/// The keys of an encoded block: arbitrary, with a rotation that is not a multiple of 8.
const WAIT_NEVER: u64 = 0x7E31_55A0_93C4_1B2D;
const WAIT_ALWAYS: u64 = 0x19F0_C4D3_2B68_8A05;

impl NtMachine {
    pub(crate) fn write_kdbg(&mut self) {
        let usual = if self.build.is_64_bit && self.build.number >= 9200 { Kdbg::Encoded } else { Kdbg::Clear };
        let how = self.options.kdbg.unwrap_or(usual);
        if how == Kdbg::Absent {
            return;
        }
        let at = self.symbol_address("KdDebuggerDataBlock");
        let wide = self.build.is_64_bit;
        let size: usize = match self.build.number {
            ..6000 => 0x290,
            6000..9200 => 0x340,
            9200..14393 => 0x360,
            _ => 0x380,
        };
        // Addresses in a block of a 32-bit kernel: XP's have high halves of zero, later ones are sign-extended.
        let extend =
            |va: u64| if !wide && self.build.number >= 6000 && va >= 0x8000_0000 { va | 0xFFFF_FFFF_0000_0000 } else { va };
        let mut block = vec![0; size];
        let mut put = |offset: usize, value: u64| block[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        let list = self.symbol_address("KdpDebuggerDataListHead");
        if wide {
            put(0, list);
            put(8, list);
        } else {
            // A LIST_ENTRY of the kernel's own width in the place of one of 64 bits.
            put(0, list | list << 32);
        }
        put(0x10, u64::from(u32::from_le_bytes(*b"KDBG")) | (size as u64) << 32);
        put(0x18, extend(self.base));
        let variables = [
            (0x48, "PsLoadedModuleList"),
            (0x50, "PsActiveProcessHead"),
            (0x58, "PspCidTable"),
            (0x98, "ObpRootDirectoryObject"),
            (0xA0, "ObpTypeObjectType"),
            (0xC0, "MmPfnDatabase"),
            (0x110, "MmNonPagedPoolStart"),
            (0x118, "MmNonPagedPoolEnd"),
            (0x120, "MmPagedPoolStart"),
            (0x128, "MmPagedPoolEnd"),
            (0x1B8, "PoolTrackTable"),
            (0x1C8, "MmHighestUserAddress"),
            (0x1D0, "MmSystemRangeStart"),
            (0x1D8, "MmUserProbeAddress"),
            (0x208, "NtBuildLab"),
            (0x218, "KiProcessorBlock"),
            (0x220, "MmUnloadedDrivers"),
            (0x228, "MmLastUnloadedDriver"),
            (0x268, "CmNtCSDVersion"),
        ];
        for (offset, name) in variables {
            if let Some(rva) = self.image.symbols.get(name) {
                put(offset, extend(self.base + rva));
            }
        }
        put(0x138, PAGE);
        if self.tables.paging() == crate::paging::Paging::Pae {
            block[0x36] |= 1;
        }
        if how == Kdbg::Encoded {
            self.encode(&mut block);
        }
        self.write_kernel(at, &block);
        self.list_init(list);
        self.write_pointer(list, at);
        self.write_pointer(list + self.build.pointer(), at);

        let version = self.symbol_address("KdVersionBlock");
        let mut bytes = vec![0; 0x28];
        bytes[0..2].copy_from_slice(&0xF_u16.to_le_bytes());
        bytes[2..4].copy_from_slice(&(self.build.number as u16).to_le_bytes());
        bytes[4] = 6;
        bytes[8..10].copy_from_slice(&(if wide { 0x8664_u16 } else { 0x14C }).to_le_bytes());
        let modules = self.symbol_address("PsLoadedModuleList");
        for (offset, value) in [(0x10, self.base), (0x18, modules), (0x20, list)] {
            let value = if wide || value < 0x8000_0000 { value } else { value | 0xFFFF_FFFF_0000_0000 };
            bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        }
        self.write_kernel(version, &bytes);
    }

    /// The inverse of what the debugger does with it; see the description at Volatility's `win8_kdbg`.
    fn encode(&mut self, block: &mut [u8]) {
        self.set_pointer("KiWaitNever", WAIT_NEVER);
        self.set_pointer("KiWaitAlways", WAIT_ALWAYS);
        self.set_variable("KdpDataBlockEncoded", 1, 1);
        let flag = self.symbol_address("KdpDataBlockEncoded") | 0xFFFF_0000_0000_0000;
        for word in block.chunks_exact_mut(8) {
            let clear = u64::from_le_bytes(word.try_into().expect("8 bytes"));
            let mixed = (clear ^ WAIT_ALWAYS).swap_bytes() ^ flag;
            let encoded = mixed.rotate_right((WAIT_NEVER & 0xFF) as u32) ^ WAIT_NEVER;
            word.copy_from_slice(&encoded.to_le_bytes());
        }
    }
}
