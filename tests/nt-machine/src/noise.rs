//! What else is in memory: bytes that look like something and are not, and choices at random.

use crate::build::Build;
use crate::kernel_image::guid_bytes;
use crate::machine::NtMachine;
use crate::memory::PAGE;
use crate::options::{Kdbg, KvaShadow, Options};
use crate::paging::Paging;
use crate::state::small_pe;

/// Numbers that look random: xorshift64*.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers that depend on the seed.
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..8 {
            random.next();
        }
        random
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 8) % end
    }

    /// Whether something with one chance in `of` happens.
    pub fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
}

impl NtMachine {
    /// Fills so many free pages with what memory is full of: random bytes, text, pointers to the kernel; and among them what misleads a search: headers of other
    /// modules, records that name the kernel's program database with another identity, the letters `KDBG` in code and data, tables that map themselves but no
    /// kernel, copies of the process System.
    pub fn add_noise(&mut self, pages: u64) {
        let mut random = Random::new(self.options.seed ^ 0xA015E);
        for nth in 0..pages {
            let pa = self.memory.alloc_page();
            let page = self.noise(&mut random, nth, pa);
            self.memory.write(pa, &page);
        }
    }

    fn noise(&mut self, random: &mut Random, nth: u64, pa: u64) -> Vec<u8> {
        let mut page: Vec<u8> = Vec::with_capacity(PAGE as usize);
        let wide = self.build.is_64_bit;
        let (base, size) = (self.base, self.image.size);
        match nth % 16 {
            0..5 => page.extend((0..PAGE / 8).flat_map(|_| random.next().to_le_bytes())),
            5..7 => page.extend(b"The quick brown fox jumps over the lazy dog. \r\n".iter().cycle().take(PAGE as usize)),
            7..10 => page
                .extend((0..PAGE / 8).flat_map(|_| {
                    if random.one_in(3) { base + random.below(size) } else { random.below(1 << 20) }.to_le_bytes()
                })),
            10 => page = small_pe(wide, random.next() & !0xFFFF, 0x8000),
            11 => {
                // A record of another kernel, as a symbol cache or an update has it.
                page.resize(random.below(0xF00) as usize & !3, 0);
                page.extend(b"RSDS");
                page.extend(guid_bytes(&format!("{:016X}{:016X}", random.next(), random.next())));
                page.extend(1_u32.to_le_bytes());
                page.extend(self.build.pdb_name.as_bytes());
            }
            12 => {
                page.resize(0x100, 0x90);
                // mov eax, 'KDBG', and the letters behind what a list's pointers look like.
                page.extend(b"\xB8KDBG\x90\x90\x90");
                page.resize(0x200, 0);
                page.extend(b"\x00\x00\x00\x00\x00\xF8\xFF\xFF\x00\x00\x00\x00\x00\xF8\xFF\xFFKDBG\x40\x03\x00\x00");
                page.resize(0x400, 0);
                page.extend(b"\0\0\0\0\0\0\0\0KDBG\x90\x02\x00\x00");
            }
            13 => {
                // A table that lists itself in one slot, and has nothing else that a kernel's has.
                page.resize(PAGE as usize, 0);
                let slot = if random.one_in(2) { 0x1ED } else { 0x100 + random.below(0x100) } as usize;
                page[slot * 8..slot * 8 + 8].copy_from_slice(&(pa | 0x63).to_le_bytes());
            }
            14 => {
                // One that lists itself in every slot.
                page.extend((0..512).flat_map(|_| (pa | 0x63).to_le_bytes()));
            }
            _ => {
                let system = self.processes[0].eprocess;
                page = self.read_kernel(system, (self.build.layout.size("_EPROCESS") as usize).min(PAGE as usize));
            }
        }
        page.resize(PAGE as usize, 0);
        page
    }
}

impl Options {
    /// A machine of the build with choices at random, all of which real machines have been seen with.
    pub fn random(build: &Build, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut options = Self { seed, ..Self::default() };
        let top = (64 + random.below(9) * 16) << 20;
        options.ram = if random.one_in(2) { vec![0..0xA_0000, 0x10_0000..top] } else { vec![0..top] };
        if build.is_64_bit && random.one_in(3) {
            options.ram.push(4 << 30..(4 << 30) + (32 << 20));
        }
        if build.is_64_bit && build.number >= 14393 {
            options.paging = Some(Paging::FourLevel { self_map: free_slot(&mut random) });
        }
        options.low_stub = (!random.one_in(3)).then(|| 0x1000 * (1 + random.below(0x8F)));
        if build.is_64_bit && random.one_in(2) {
            options.system_root = Some((40 << 20) + random.below(0x1000) * PAGE);
        }
        options.kernel_large_pages = !random.one_in(3);
        options.kernel_full_size = random.one_in(2) && build.number >= 6000;
        let aligned = if options.kernel_large_pages && build.number >= 9200 { !0x1F_FFFF } else { !0xFFF };
        options.kernel_base = match (build.is_64_bit, build.number) {
            (true, 9200..) => Some(0xFFFF_F802_0000_0000 + (random.below(0xF000_0000) & aligned)),
            (false, 6000..) => Some(0x8180_0000 + (random.below(0x200_0000) & aligned)),
            _ => None,
        };
        options.kdbg = [None, Some(Kdbg::Clear), Some(Kdbg::Absent)][random.below(3) as usize];
        if !options.kernel_large_pages {
            options.lonely_header = build.is_64_bit && build.number >= 14393 && random.one_in(2);
            options.codeview_paged_out = random.one_in(4);
        }
        options.stale_kernel = random.one_in(3);
        let known = |of: &str, member: &str| build.layout.offset(of, member).is_some();
        if build.is_64_bit && known("_KPROCESS", "UserDirectoryTableBase") && known("_KPRCB", "KernelDirectoryTableBase") {
            options.kva_shadow = [KvaShadow::Off, KvaShadow::On, KvaShadow::InUserMode][random.below(3) as usize];
        }
        options
    }
}

/// A slot for the self-map that nothing else of the machine needs.
fn free_slot(random: &mut Random) -> u16 {
    loop {
        let slot = 0x100 + random.below(0x100);
        let taken = [0xFFFF_F780_0000_0000_u64, 0xFFFF_F800_0000_0000, 0xFFFF_C08B_DCE0_0000, 0xFFFF_AE0F_1420_0000];
        if !taken.iter().any(|va| va >> 39 & 0x1FF == slot) {
            return slot as u16;
        }
    }
}
