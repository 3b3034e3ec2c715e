//! The kernel's pools: blocks with headers and tags.
//!
//! `_POOL_HEADER`: sizes in units of 16 bytes (64-bit) or 8; `PreviousSize` and `BlockSize` are 8 bits wide on 64-bit kernels and 9 on 32-bit ones, each
//! followed by `PoolIndex` and `PoolType` in the same 16 bits.

use crate::NtMachine;
use crate::memory::PAGE;
use crate::paging::KERNEL_DATA;

/// Which pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// Always in memory: processes, threads, modules.
    NonPaged,
    /// Can be paged out: handle tables, names, the registry.
    Paged,
}

/// The pool that grows, one page after another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool {
    /// The next free address.
    pub(crate) next: u64,
    /// The first address that is not mapped yet.
    pub(crate) end: u64,
    /// Units of the block before the next one; 0 at the start of a page.
    pub(crate) previous: u64,
}

impl NtMachine {
    /// A block of the non-paged pool for `size` bytes: the address behind its header. Zeroed. Blocks too large for a page are pages of their own without a header,
    /// as in NT.
    pub fn alloc_pool(&mut self, tag: &[u8; 4], size: u64) -> u64 {
        self.alloc_pool_of(PoolKind::NonPaged, tag, size)
    }

    /// A block of one of the pools.
    pub fn alloc_pool_of(&mut self, kind: PoolKind, tag: &[u8; 4], size: u64) -> u64 {
        let unit = self.build.pointer() * 2;
        let header = unit;
        let bytes = header + size.next_multiple_of(unit);
        let mut pool = self.pools[kind as usize];
        let large = bytes > PAGE - unit;
        if large || pool.next % PAGE + bytes > PAGE {
            // The rest of the page becomes a free block.
            let rest = pool.next.next_multiple_of(PAGE) - pool.next;
            if rest > 0 && rest < PAGE {
                self.pool_header(pool.next, pool.previous, rest / unit, 0, b"Free");
            }
            pool.next = pool.next.next_multiple_of(PAGE);
            pool.previous = 0;
        }
        let wanted = if large { size.next_multiple_of(PAGE) } else { bytes };
        while pool.end < pool.next + wanted {
            self.map_kernel_page(pool.end, KERNEL_DATA);
            pool.end += PAGE;
        }
        let block = pool.next;
        pool.next += wanted;
        let body = if large {
            block
        } else {
            // PoolType as it is stored: the type plus one (or'ed with 2 since Windows Vista's "in use" bit); paged is odd, non-paged even.
            let stored = if self.build.number < 6000 { kind as u64 + 1 } else { kind as u64 + 2 };
            self.pool_header(block, pool.previous, bytes / unit, stored, tag);
            pool.previous = bytes / unit;
            block + header
        };
        self.pools[kind as usize] = pool;
        body
    }

    fn pool_header(&mut self, at: u64, previous: u64, units: u64, pool_type: u64, tag: &[u8; 4]) {
        let shift = if self.build.is_64_bit { 8 } else { 9 };
        let first = previous | (units | pool_type << shift) << 16;
        self.write_kernel(at, &(first as u32).to_le_bytes());
        self.write_kernel(at + 4, tag);
    }
}
