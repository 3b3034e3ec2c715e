//! The section `ram`: blocks of memory, and their pages.

use super::cursor::Cursor;
use super::mapped_ram::Fixed;
use super::page_runs::{PAGE, PAGE_BITS, PageRuns, Stored};
use super::stream::Capabilities;
use crate::FormatError;
use crate::source::Source;

/// What the records mean: `RAM_SAVE_FLAG_*` in QEMU, migration/ram.c. They lie in the low bits of an address of a page.
mod flag {
    pub(super) const MASK: u64 = 0xfff;
    pub(super) const ZERO: u64 = 0x02;
    pub(super) const MEMORY_SIZE: u64 = 0x04;
    pub(super) const PAGE: u64 = 0x08;
    pub(super) const END: u64 = 0x10;
    pub(super) const CONTINUE: u64 = 0x20;
    pub(super) const XBZRLE: u64 = 0x40;
    pub(super) const HOOK: u64 = 0x80;
    pub(super) const COMPRESSED: u64 = 0x100;
    pub(super) const MULTIFD_FLUSH: u64 = 0x200;
}

/// What QEMU has of its memory.
#[derive(Debug, Default)]
pub(super) struct Ram {
    pub(super) blocks: Vec<Block>,
    /// Of the last page.
    current: Option<usize>,
}

/// A block of memory: RAM, a part of it, or the memory of a device.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) name: String,
    pub(super) len: u64,
    /// Where its pages are, if they have records.
    pub(super) pages: PageRuns,
    /// Where they are, if at a fixed place.
    pub(super) fixed: Option<Fixed>,
    /// Whether the sender may have left out its content, which is in a file of its own then.
    pub(super) may_be_left_out: bool,
}

/// More blocks than any machine has.
const MOST_BLOCKS: usize = 4096;
/// More than any machine has; and the number of a page fits 32 bits.
const LONGEST: u64 = 1 << 43;

impl Ram {
    /// Reads records up to the one that ends a part.
    pub(super) fn read_part(&mut self, cursor: &mut Cursor<'_>, capabilities: &Capabilities) -> Result<(), FormatError> {
        loop {
            let offset = cursor.at();
            let malformed = |what: String| FormatError::Malformed { offset, what };
            let record = cursor.long("a page's address, before the end of the memory")?;
            let (at, flags) = (record & !flag::MASK, record & flag::MASK);
            if flags & flag::MEMORY_SIZE != 0 {
                self.read_blocks(cursor, at, capabilities)?;
            } else if flags & flag::ZERO != 0 {
                let block = self.block(cursor, flags, offset)?;
                let fill = cursor.byte("a page of zeros")?;
                if fill != 0 {
                    return Err(malformed(format!("a page filled with {fill:#x}, where QEMU writes but zeros")));
                }
                block.page(at, None, offset)?;
            } else if flags & flag::PAGE != 0 {
                let block = self.block(cursor, flags, offset)?;
                let data = cursor.at();
                if cursor.left() < PAGE {
                    let missing = PAGE.saturating_sub(cursor.left());
                    return Err(FormatError::Truncated { what: format!("the page at {at:#x} of `{}`", block.name), missing });
                }
                block.page(at, Some(data), offset)?;
                cursor.skip(PAGE);
            } else if flags == flag::END {
                return Ok(());
            } else if flags & flag::XBZRLE != 0 {
                return Err(malformed(refused("differences to earlier pages", "xbzrle")));
            } else if flags & flag::COMPRESSED != 0 {
                return Err(malformed(refused("pages compressed one by one", "compress")));
            } else if flags == flag::MULTIFD_FLUSH {
                // Where memory lies at fixed places, other channels fill them; this is but a mark.
                if !capabilities.mapped_ram {
                    return Err(malformed(refused("memory sent by other channels", "multifd")));
                }
            } else if flags & flag::HOOK != 0 {
                return Err(malformed("memory sent by RDMA, which is not in the stream".to_owned()));
            } else {
                return Err(malformed(format!("a page with the unknown flags {flags:#x}")));
            }
        }
    }

    /// The block that the record at `offset` is about.
    fn block(&mut self, cursor: &mut Cursor<'_>, flags: u64, offset: u64) -> Result<&mut Block, FormatError> {
        let malformed = |what: String| FormatError::Malformed { offset, what };
        if flags & flag::CONTINUE == 0 {
            let name = cursor.name("the name of a page's block")?;
            let found = self.blocks.iter().position(|block| block.name == name);
            self.current =
                Some(found.ok_or_else(|| malformed(format!("a page of the block `{name}`, which is not in the list")))?);
        }
        let current = self.current.and_then(|index| self.blocks.get_mut(index));
        current.ok_or_else(|| malformed("a page without a block".to_owned()))
    }

    /// The list of blocks, which have `total` bytes together.
    fn read_blocks(&mut self, cursor: &mut Cursor<'_>, total: u64, capabilities: &Capabilities) -> Result<(), FormatError> {
        const WHAT: &str = "the list of memory blocks";
        if !self.blocks.is_empty() {
            return Err(FormatError::Malformed { offset: cursor.at(), what: "a second list of memory blocks".to_owned() });
        }
        let mut listed = 0u64;
        while listed < total {
            let offset = cursor.at();
            let malformed = |what: String| FormatError::Malformed { offset, what };
            let name = cursor.name(WHAT)?;
            let len = cursor.long(WHAT)?;
            if name.is_empty() || len == 0 || !len.is_multiple_of(PAGE) || len > LONGEST || self.blocks.len() >= MOST_BLOCKS {
                return Err(malformed(format!("the memory block `{name}` of {len:#x} bytes cannot be")));
            }
            if self.blocks.iter().any(|block| block.name == name) {
                return Err(malformed(format!("two memory blocks of the name `{name}`")));
            }
            listed = listed.saturating_add(len);
            if is_page_size_next(cursor, capabilities)? {
                cursor.skip(8);
            }
            if capabilities.ignore_shared {
                let _place_in_its_container = cursor.long(WHAT)?;
            }
            let fixed = if capabilities.mapped_ram { Some(Fixed::read(cursor, &name, len)?) } else { None };
            self.blocks.push(Block { name, len, pages: PageRuns::default(), fixed, may_be_left_out: capabilities.ignore_shared });
        }
        if listed != total {
            let what = format!("memory blocks of {listed:#x} bytes, where {total:#x} were told");
            return Err(FormatError::Malformed { offset: cursor.at(), what });
        }
        Ok(())
    }

    /// After the last part.
    pub(super) fn finish(&mut self) {
        self.blocks.iter_mut().for_each(|block| block.pages.finish());
    }
}

impl Block {
    /// Notes the page at `at`, whose data is at an offset of the file, or which is zero.
    fn page(&mut self, at: u64, data: Option<u64>, offset: u64) -> Result<(), FormatError> {
        if at >= self.len {
            let what = format!("a page at {at:#x} of the block `{}`, which has {:#x} bytes", self.name, self.len);
            return Err(FormatError::Malformed { offset, what });
        }
        self.pages.push(at >> PAGE_BITS, data);
        Ok(())
    }

    /// What is in the block, which the caller knows to be short; zeros where the file cannot be read.
    pub(super) fn content(&self, source: &Source) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(self.len).unwrap_or_default()];
        for (number, page) in (0u64..).zip(content.chunks_mut(PAGE as usize)) {
            let data = match (self.fixed, self.pages.at(number, 1)) {
                (Some(fixed), _) => fixed.page(source, number),
                (None, (Stored::At(data), _)) => Some(data),
                (None, (Stored::Zeros, _)) => None,
            };
            if data.is_some_and(|data| source.read_at(data, page, "a page").is_err()) {
                page.fill(0);
            }
        }
        content
    }
}

/// With `postcopy-ram`, which the stream does not tell, a block's entry has the size of its pages if other blocks have larger ones.
///
/// What else may come next is no such number: a name begins with its length, and a record has flags in its low bits. But the place that
/// comes with `x-ignore-shared` may be one, so that the number behind it decides.
fn is_page_size_next(cursor: &mut Cursor<'_>, capabilities: &Capabilities) -> Result<bool, FormatError> {
    const SIZES: [u64; 3] = [PAGE, 2 << 20, 1 << 30];
    const WHAT: &str = "the list of memory blocks";
    if cursor.left() < 16 || !SIZES.contains(&cursor.peek_long(WHAT)?) {
        return Ok(false);
    }
    let here = cursor.at();
    cursor.skip(8);
    let behind = cursor.peek_long(WHAT)?;
    cursor.seek(here);
    Ok(!capabilities.ignore_shared || behind & flag::MASK == 0 && behind < LONGEST)
}

fn refused(what: &str, capability: &str) -> String {
    format!(
        "{what} (the capability `{capability}`) cannot be read: switch it off (`migrate_set_capability {capability} off`) and migrate anew"
    )
}
