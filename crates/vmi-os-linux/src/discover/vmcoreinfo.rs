//! VMCOREINFO: what a kernel tells crash-dump tools about itself (kernel: Documentation/admin-guide/kdump/vmcoreinfo.rst).

use vmi_arch_x86::PagingMode;
use vmi_core::PhysAddr;

use super::Failure;
use super::image::START_KERNEL_MAP;

/// How the note in memory begins: its name, padded, and the first key of its text.
pub(super) const NEEDLE: &[u8] = b"VMCOREINFO\0\0OSRELEASE=";

/// Where the text begins behind the start of [`NEEDLE`].
pub(super) const TEXT: u64 = 12;

/// The text fills at most one page (kernel: VMCOREINFO_BYTES).
pub(super) const MAX_TEXT: u64 = 4096;

/// Addresses where the linear mapping of a 32-bit kernel can begin (arch/x86/Kconfig: PAGE_OFFSET).
pub(super) const PAGE_OFFSETS: [u64; 5] = [0xc000_0000, 0xb000_0000, 0x8000_0000, 0x7800_0000, 0x4000_0000];

/// The value of `key` in `text`.
fn value<'t>(text: &'t [u8], key: &str) -> Option<&'t str> {
    text.split(|&byte| byte == b'\n').find_map(|line| {
        let rest = line.strip_prefix(key.as_bytes())?.strip_prefix(b"=")?;
        core::str::from_utf8(rest).ok().map(|value| value.trim_end_matches('\0'))
    })
}

/// The roots of page tables that `text` speaks of, most probable first. For 32-bit kernels it does not tell where low memory is
/// mapped: there are several then.
pub(super) fn roots(text: &[u8]) -> Result<Vec<(PhysAddr, PagingMode)>, Failure> {
    let symbol = |name: &str| u64::from_str_radix(value(text, &format!("SYMBOL({name})"))?.trim_start_matches("0x"), 16).ok();
    let table =
        symbol("init_top_pgt").or_else(|| symbol("swapper_pg_dir")).ok_or(Failure::Incomplete("SYMBOL(swapper_pg_dir)"))?;
    if let Ok(table) = u32::try_from(table) {
        let mode = if value(text, "CONFIG_X86_PAE") == Some("y") { PagingMode::Pae } else { PagingMode::Bits32 };
        return Ok(PAGE_OFFSETS
            .iter()
            .filter_map(|&offset| Some((PhysAddr::new(u64::from(table).checked_sub(offset)?), mode)))
            .collect());
    }
    // Negative where a kernel lies lower in memory than it was linked for.
    let phys_base: i64 =
        value(text, "NUMBER(phys_base)").and_then(|text| text.parse().ok()).ok_or(Failure::Incomplete("NUMBER(phys_base)"))?;
    let root = table.wrapping_sub(START_KERNEL_MAP).wrapping_add_signed(phys_base);
    let mode = match value(text, "NUMBER(pgtable_l5_enabled)") {
        Some("1") => PagingMode::Level5,
        _ => PagingMode::Level4,
    };
    Ok(vec![(PhysAddr::new(root), mode)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_comes_from_the_symbol_and_phys_base() {
        let text = b"OSRELEASE=6.1.0\nSYMBOL(swapper_pg_dir)=ffffffff82a10000\nNUMBER(phys_base)=-4194304\nNUMBER(pgtable_l5_enabled)=1\n\0\0";
        assert_eq!(roots(text), Ok(vec![(PhysAddr::new(0x261_0000), PagingMode::Level5)]));
    }

    #[test]
    fn a_32_bit_kernel_leaves_the_split_open() {
        let text = b"OSRELEASE=6.1.0\nSYMBOL(swapper_pg_dir)=c4d39000\nCONFIG_X86_PAE=y\n";
        let roots = roots(text).unwrap();
        assert_eq!(roots.first(), Some(&(PhysAddr::new(0x4d3_9000), PagingMode::Pae)));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(roots(b""), Err(Failure::Incomplete("SYMBOL(swapper_pg_dir)")));
        assert_eq!(
            roots(b"SYMBOL(swapper_pg_dir)=ffffffff82a10000\nNUMBER(phys_base)=x"),
            Err(Failure::Incomplete("NUMBER(phys_base)"))
        );
    }
}
