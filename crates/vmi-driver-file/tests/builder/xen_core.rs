//! Cores of Xen domains: ELF sections, without segments.

use super::note;

/// A core under construction.
#[derive(Clone)]
pub struct XenCore {
    pub paravirtual: bool,
    /// Number and content of each page, in the order of the file.
    pub pages: Vec<(u64, Vec<u8>)>,
    pub vcpus: Vec<Vec<u8>>,
    pub machine: u16,
    /// Instead of the number of pages.
    pub claimed_pages: Option<u64>,
    /// Section names in another order than the sections.
    pub names_shuffled: bool,
}

impl XenCore {
    pub fn new(pages: Vec<(u64, Vec<u8>)>) -> Self {
        Self { paravirtual: false, pages, vcpus: Vec::new(), machine: 62, claimed_pages: None, names_shuffled: false }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let numbers = |list: &[u64]| list.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        let magic = if self.paravirtual { 0xf00f_ebed } else { 0xf00f_ebee };
        let pages = self.claimed_pages.unwrap_or(self.pages.len() as u64);
        let header = numbers(&[magic, self.vcpus.len() as u64, pages, 4096]);
        let notes =
            [note(b"Xen\0", 0x200_0000, &[]), note(b"Xen\0", 0x200_0001, &header), note(b"Xen\0", 0x200_0003, &numbers(&[1]))];
        let table: Vec<u8> = self
            .pages
            .iter()
            .flat_map(|(number, _)| if self.paravirtual { numbers(&[*number, frame_of(*number)]) } else { numbers(&[*number]) })
            .collect();
        let content: Vec<u8> = self.pages.iter().flat_map(|(_, page)| page.clone()).collect();
        let table_name = if self.paravirtual { ".xen_p2m" } else { ".xen_pfn" };
        // Name, type and content; the null section first.
        let mut sections = vec![
            ("", 0u32, Vec::new()),
            (".shstrtab", 3, Vec::new()),
            (".note.Xen", 7, notes.concat()),
            (".xen_prstatus", 1, self.vcpus.concat()),
            (".xen_shared_info", 1, vec![7; 4096]),
            (".xen_pages", 1, content),
            (table_name, 1, table),
        ];
        let mut order: Vec<usize> = (0..sections.len()).collect();
        if self.names_shuffled {
            order.reverse();
        }
        let (mut names, mut name_at) = (vec![b'x', 0], vec![0u32; sections.len()]);
        for index in order {
            name_at[index] = names.len() as u32;
            names.extend(sections[index].0.as_bytes());
            names.push(0);
        }
        sections[1].2 = names;

        let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
        bytes.resize(16, 0);
        bytes.extend(4u16.to_le_bytes());
        bytes.extend(self.machine.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(numbers(&[0, 0, 64]));
        bytes.extend(0u32.to_le_bytes());
        for half in [64, 0, 0, 64, sections.len() as u16, 1] {
            bytes.extend(half.to_le_bytes());
        }
        let mut at = (64 + 64 * sections.len()) as u64;
        for (index, (_, kind, content)) in sections.iter().enumerate() {
            bytes.extend(name_at[index].to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend(numbers(&[0, 0, at, content.len() as u64, 0, 8, 0]));
            at += content.len() as u64;
        }
        for (_, _, content) in &sections {
            bytes.extend(content);
        }
        bytes
    }
}

/// The machine frame of a page.
pub fn frame_of(page: u64) -> u64 {
    page ^ 0x5555
}

/// One vCPU of 64 bits: its numbers count up from `first`, in the order of the structure, but for the selectors.
pub fn vcpu(first: u64, cs: u16, flags: u64) -> Vec<u8> {
    let words = |first: u64, count: u64| (first..first + count).flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
    let mut bytes = vec![0x11; 512];
    bytes.extend(flags.to_le_bytes());
    bytes.extend(words(first, 15)); // r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi
    bytes.extend([0; 8]);
    bytes.extend(words(first + 20, 1)); // rip
    bytes.extend([&cs.to_le_bytes()[..], &[0, 0, 1, 0, 0, 0]].concat());
    bytes.extend(words(first + 21, 2)); // rflags rsp
    bytes.extend(words(24, 5)); // ss es ds fs gs
    bytes.extend(vec![0x22; 4096]);
    bytes.extend(vec![0x33; 16 + 136 + 16]);
    bytes.extend(words(first + 100, 8)); // cr0 to cr7
    bytes.extend(words(first + 200, 8)); // dr0 to dr7
    bytes.extend(vec![0x44; 24 + 8]);
    bytes.extend(words(first + 300, 3)); // fs, kernel gs, user gs
    assert_eq!(bytes.len(), 5168);
    bytes
}
