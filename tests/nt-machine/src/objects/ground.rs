//! What the objects need of the machine that they are written into, and what makes writing structures bearable.

use super::structures::{self, Bits};

/// A machine to write into.
pub trait Ground {
    /// Whether pointers are 64 bits wide.
    fn is_64_bit(&self) -> bool;
    /// The build number.
    fn build_number(&self) -> u32;
    /// Major and minor version.
    fn version(&self) -> (u32, u32);
    /// Whether page-table entries are 32 bits wide (x86 without PAE).
    fn is_legacy_paging(&self) -> bool;
    /// The build's own offset of a member.
    fn own_offset(&self, structure: &str, member: &str) -> Option<u64>;
    /// Whether the build's own table has this structure.
    fn owns(&self, structure: &str) -> bool;
    /// The build's own size of a structure; 0 if unknown.
    fn own_size(&self, structure: &str) -> u64;
    /// The address of a variable of the kernel with room for so many bytes; `None` if this build has none of that name.
    fn variable(&mut self, name: &str, size: u64) -> Option<u64>;
    /// Zeroed pool memory behind a pool header with this tag. Allocations of a page and more begin at a page and have no header.
    fn allocate(&mut self, tag: &[u8; 4], size: u64) -> u64;
    /// Writes kernel memory.
    fn write(&mut self, address: u64, bytes: &[u8]);
    /// Reads kernel memory.
    fn read(&self, address: u64, len: usize) -> Vec<u8>;
    /// A free physical page.
    fn page(&mut self) -> u64;
    /// Writes physical memory.
    fn write_physical(&mut self, address: u64, bytes: &[u8]);
    /// Writes the last-level entry of an address in the space with this root as it is.
    fn set_entry(&mut self, root: u64, address: u64, entry: u64);
    /// Maps a user page to new memory unless it is, and returns where it is.
    fn user_page(&mut self, root: u64, address: u64, writable: bool, executable: bool) -> u64;
    /// The base of the kernel's image and its size.
    fn kernel_image(&self) -> (u64, u64);
}

/// Helps to write through a [`Ground`]; every `Ground` has it.
pub trait Writing: Ground {
    /// Bytes of a pointer.
    fn pointer(&self) -> u64 {
        if self.is_64_bit() { 8 } else { 4 }
    }

    /// The offset of a member: the build's, or else the table's. Where the build knows the structure, the table of a neighbour has nothing to say.
    fn find(&self, structure: &str, member: &str) -> Option<u64> {
        self.own_offset(structure, member).or_else(|| {
            if self.owns(structure) && !structures::is_exact(self.is_64_bit(), self.build_number()) {
                return None;
            }
            let section = structures::section(self.is_64_bit(), self.build_number());
            section.get(structure)?.members.get(member).map(|member| member.offset)
        })
    }

    /// The offset of a member that the caller cannot do without.
    fn at(&self, structure: &str, member: &str) -> u64 {
        self.find(structure, member).unwrap_or_else(|| panic!("build {}: no {structure}.{member}", self.build_number()))
    }

    /// Where the bits of a bit field are, in bits from the start of its structure.
    fn bits(&self, structure: &str, member: &str) -> Option<Bits> {
        let section = structures::section(self.is_64_bit(), self.build_number());
        section.get(structure)?.members.get(member)?.bits
    }

    /// A number with this bit field set to `value` and all else zero. Zero if the build has no such field.
    fn field(&self, structure: &str, member: &str, value: u64) -> u64 {
        let Some((position, length)) = self.bits(structure, member) else { return 0 };
        let mask = if length == 64 { u64::MAX } else { (1 << length) - 1 };
        (value & mask) << position
    }

    /// Bytes of a structure, `None` if unknown.
    fn size(&self, structure: &str) -> Option<u64> {
        let section = structures::section(self.is_64_bit(), self.build_number());
        Some(self.own_size(structure)).filter(|size| *size != 0).or_else(|| Some(section.get(structure)?.size))
    }

    /// Bytes of a structure that the caller cannot do without.
    fn size_of(&self, structure: &str) -> u64 {
        self.size(structure).unwrap_or_else(|| panic!("build {}: no {structure}", self.build_number()))
    }

    /// Writes a number of `width` bytes.
    fn put(&mut self, address: u64, value: u64, width: u64) {
        self.write(address, &value.to_le_bytes()[..width as usize]);
    }

    /// Writes a pointer.
    fn put_pointer(&mut self, address: u64, value: u64) {
        self.put(address, value, self.pointer());
    }

    /// Reads a number of `width` bytes.
    fn get(&self, address: u64, width: u64) -> u64 {
        let mut bytes = [0; 8];
        bytes[..width as usize].copy_from_slice(&self.read(address, width as usize));
        u64::from_le_bytes(bytes)
    }

    /// Reads a pointer.
    fn get_pointer(&self, address: u64) -> u64 {
        self.get(address, self.pointer())
    }

    /// Writes a member of `width` bytes if the build has it.
    fn fill(&mut self, structure: &str, member: &str, address: u64, value: u64, width: u64) {
        if let Some(offset) = self.find(structure, member) {
            self.put(address + offset, value, width);
        }
    }

    /// Writes a pointer member if the build has it.
    fn fill_pointer(&mut self, structure: &str, member: &str, address: u64, value: u64) {
        self.fill(structure, member, address, value, self.pointer());
    }

    /// Writes a `_UNICODE_STRING` whose characters go to pool memory.
    fn put_string(&mut self, address: u64, text: &str) {
        let bytes = utf16(text);
        let buffer = self.allocate(b"ObNm", bytes.len() as u64 + 2);
        self.write(buffer, &bytes);
        self.put_string_at(address, &bytes, buffer);
    }

    /// Writes a `_UNICODE_STRING` whose characters are elsewhere already.
    fn put_string_at(&mut self, address: u64, bytes: &[u8], buffer: u64) {
        self.put(address, bytes.len() as u64, 2);
        self.put(address + 2, bytes.len() as u64 + 2, 2);
        self.put_pointer(address + self.pointer(), buffer);
    }

    /// Makes an empty list.
    fn list_head(&mut self, head: u64) {
        self.put_pointer(head, head);
        self.put_pointer(head + self.pointer(), head);
    }

    /// Puts a link at the end of a list; a list that was never made is made empty first.
    fn list_append(&mut self, head: u64, link: u64) {
        let width = self.pointer();
        if self.get_pointer(head) == 0 {
            self.list_head(head);
        }
        let last = self.get_pointer(head + width);
        self.put_pointer(link, head);
        self.put_pointer(link + width, last);
        self.put_pointer(last, link);
        self.put_pointer(head + width, link);
    }

    /// Takes a link out of its list, which then still points into the list, as a rootkit leaves it.
    fn list_unlink(&mut self, link: u64) {
        let width = self.pointer();
        let (next, previous) = (self.get_pointer(link), self.get_pointer(link + width));
        self.put_pointer(previous, next);
        self.put_pointer(next + width, previous);
    }

    /// Writes user memory of the space with this root; pages are mapped as needed.
    fn write_user(&mut self, root: u64, address: u64, bytes: &[u8]) {
        let (mut address, mut rest) = (address, bytes);
        while !rest.is_empty() {
            let page = self.user_page(root, address & !0xFFF, true, false);
            let part = rest.len().min(0x1000 - (address & 0xFFF) as usize);
            self.write_physical(page + (address & 0xFFF), &rest[..part]);
            rest = &rest[part..];
            address += part as u64;
        }
    }

    /// Writes a number into user memory.
    fn put_user(&mut self, root: u64, address: u64, value: u64, width: u64) {
        self.write_user(root, address, &value.to_le_bytes()[..width as usize]);
    }
}

impl<T: Ground + ?Sized> Writing for T {}

/// UTF-16 bytes of a text.
pub fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}
