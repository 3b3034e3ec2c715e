//! VMware's saved states: header, groups, tags.

/// Numbers of the header's magic.
pub const WIDE: u32 = 0xbed2_bed2;
pub const NARROW: u32 = 0xbed2_bed0;

/// A tag whose value has up to 61 bytes.
pub fn tag(name: &str, indices: &[u32], value: &[u8]) -> Vec<u8> {
    head(name, indices, value.len() as u8, value)
}

/// A tag with a block as its value, after `padding` bytes. `kind` is 63 for plain and 62 for compressed bytes.
pub fn block(name: &str, indices: &[u32], kind: u8, padding: u16, wide: bool, bytes: &[u8]) -> Vec<u8> {
    let mut value = Vec::new();
    for _ in 0..2 {
        let len = (bytes.len() as u64).to_le_bytes();
        value.extend(if wide { &len[..] } else { &len[..4] });
    }
    value.extend(padding.to_le_bytes());
    value.extend(vec![0xee; padding as usize]);
    value.extend(bytes);
    head(name, indices, kind, &value)
}

fn head(name: &str, indices: &[u32], len: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![(indices.len() as u8) << 6 | len, name.len() as u8];
    bytes.extend(name.as_bytes());
    indices.iter().for_each(|index| bytes.extend(index.to_le_bytes()));
    bytes.extend(value);
    bytes
}

/// A file with these groups, each of these tags.
pub fn file(magic: u32, groups: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes: Vec<u8> = [magic, 8, groups.len() as u32].iter().flat_map(|number| number.to_le_bytes()).collect();
    let mut at = bytes.len() + 80 * groups.len();
    for (name, tags) in groups {
        let mut field = [0; 64];
        field[..name.len()].copy_from_slice(name.as_bytes());
        bytes.extend(field);
        bytes.extend((at as u64).to_le_bytes());
        bytes.extend((tags.len() as u64 + 2).to_le_bytes());
        at += tags.len() + 2;
    }
    for (_, tags) in groups {
        bytes.extend(tags);
        bytes.extend([0, 0]);
    }
    bytes
}

/// Tags of regions: first page in the machine, first page in the file, pages.
pub fn regions(list: &[(u32, u32, u32)]) -> Vec<u8> {
    let mut tags = tag("regionsCount", &[], &(list.len() as u32).to_le_bytes());
    for (index, (first, page, pages)) in (0..).zip(list) {
        tags.extend(tag("regionPageNum", &[index], &page.to_le_bytes()));
        tags.extend(tag("regionPPN", &[index], &first.to_le_bytes()));
        tags.extend(tag("regionSize", &[index], &pages.to_le_bytes()));
    }
    tags
}
