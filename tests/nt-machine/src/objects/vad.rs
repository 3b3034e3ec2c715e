//! Address descriptors (VADs) with the sections and files behind them.
//!
//! Structures in the public symbols: `_MMVAD_SHORT` for private memory, `_MMVAD` for all else; below them `_SUBSECTION`, `_CONTROL_AREA`, `_SEGMENT`, and the
//! file object. Windows XP and Server 2003 have a plain tree of nodes, Vista to 8.0 an `_MM_AVL_TABLE` whose root node is the right child of a node in
//! `_EPROCESS` itself, 8.1 and later an `_RTL_AVL_TREE` (Dolan-Gavitt, "The VAD tree", 2007, for the first two).

use super::ground::{Ground, Writing};
use super::header::{NewObject, ObjectManager};
use super::pages;
use super::spec::{Region, RegionKind};

/// A section with its file: what all processes share that map it.
#[derive(Clone, Copy, Debug)]
pub struct MappedFile {
    /// The `_FILE_OBJECT`; 0 for memory of the page file.
    pub file: u64,
    /// The `_CONTROL_AREA`.
    pub control_area: u64,
    /// The first `_SUBSECTION`.
    pub subsection: u64,
    /// The `_SEGMENT`.
    pub segment: u64,
    /// The first prototype entry.
    pub prototypes: u64,
}

/// `Flags.Image` and `Flags.File` of a control area; the bits have had their places since Windows XP.
const IMAGE: u64 = 1 << 5;
const FILE: u64 = 1 << 7;

/// The kernel's numbers of `_MI_VAD_TYPE`.
const IMAGE_MAP: u64 = 2;

/// The kernel's numbers of protections as `PAGE_` constants: the array `MmProtectToValue`, which tools read to name them.
pub fn write_protections(ground: &mut impl Ground) {
    const PLAIN: [u32; 8] = [1, 2, 0x10, 0x20, 4, 8, 0x40, 0x80];
    let Some(table) = ground.variable("MmProtectToValue", 32 * 4) else { return };
    // Four times eight: plain, not cached, guarded, write-combined.
    for (group, extra) in (0..).zip([0, 0x200, 0x100, 0x400]) {
        for (nth, value) in (0..).zip(PLAIN) {
            let value = if nth == 0 { 1 } else { value | extra };
            ground.put(table + (group * 8 + nth) * 4, value.into(), 4);
        }
    }
}

impl ObjectManager {
    /// The section of a file, made when it is asked for first.
    pub fn mapped_file(&mut self, ground: &mut impl Ground, path: &str, image: bool, pages: u64) -> MappedFile {
        if let Some(known) = self.files.get(path) {
            return *known;
        }
        let volume = "\\Device\\HarddiskVolume2";
        let device = self.devices.get(volume).copied().unwrap_or(0);
        let file = self.create_file(ground, device, path.strip_prefix(volume).unwrap_or(path));
        let mapped = self.section(ground, file, image, pages);
        let pointers = ground.allocate(b"MmSo", 3 * ground.pointer());
        ground.put_pointer(pointers + if image { 2 * ground.pointer() } else { 0 }, mapped.control_area);
        ground.fill_pointer("_FILE_OBJECT", "SectionObjectPointer", file, pointers);
        self.files.insert(path.to_owned(), mapped);
        mapped
    }

    /// A section of its own.
    pub fn section(&self, ground: &mut impl Ground, file: u64, image: bool, pages: u64) -> MappedFile {
        let width = pages::entry_width(ground);
        let prototypes = ground.allocate(b"MmSt", pages * width);
        let area_size = ground.size_of("_CONTROL_AREA").next_multiple_of(8);
        let subsection_size = ground.size_of("_SUBSECTION");
        let control_area = ground.allocate(if image { b"MmCi" } else { b"MmCa" }, area_size + subsection_size);
        // The first subsection lies right behind its control area.
        let subsection = control_area + area_size;
        let segment_size = ground.size_of("_SEGMENT");
        let segment = ground.allocate(b"MmSg", segment_size);
        ground.fill_pointer("_CONTROL_AREA", "Segment", control_area, segment);
        if file != 0 {
            // A fast reference since Windows Vista: the low bits count.
            let count = if ground.build_number() < 6000 { 0 } else { 3 };
            ground.fill_pointer("_CONTROL_AREA", "FilePointer", control_area, file | count);
        }
        let flags = if image {
            IMAGE | FILE
        } else if file != 0 {
            FILE
        } else {
            0
        };
        ground.fill("_CONTROL_AREA", "u", control_area, flags, 4);
        ground.fill_pointer("_CONTROL_AREA", "NumberOfSectionReferences", control_area, 1);
        ground.fill_pointer("_CONTROL_AREA", "NumberOfMappedViews", control_area, 1);
        ground.fill_pointer("_SUBSECTION", "ControlArea", subsection, control_area);
        ground.fill_pointer("_SUBSECTION", "SubsectionBase", subsection, prototypes);
        ground.fill("_SUBSECTION", "PtesInSubsection", subsection, pages, 4);
        ground.fill_pointer("_SEGMENT", "ControlArea", segment, control_area);
        ground.fill("_SEGMENT", "TotalNumberOfPtes", segment, pages, 4);
        ground.fill("_SEGMENT", "SizeOfSegment", segment, pages << 12, 8);
        ground.fill_pointer("_SEGMENT", "PrototypePte", segment, prototypes);
        MappedFile { file, control_area, subsection, segment, prototypes }
    }

    /// A section object of this section, for `SectionObject` of a process: `_SECTION` since Windows 10, `_SECTION_OBJECT` before.
    pub fn section_object(&self, ground: &mut impl Ground, mapped: &MappedFile, pages: u64) -> u64 {
        let size = ground.size("_SECTION").or_else(|| ground.size("_SECTION_OBJECT")).unwrap_or(0x40);
        let object = self.create(ground, &NewObject { kind: "Section", size, ..NewObject::default() });
        if ground.find("_SECTION", "u1").is_some() {
            ground.fill_pointer("_SECTION", "u1", object, mapped.control_area);
            ground.fill("_SECTION", "SizeOfSection", object, pages << 12, 8);
        } else {
            ground.fill_pointer("_SECTION_OBJECT", "Segment", object, mapped.segment);
        }
        object
    }
}

/// Writes the descriptors of a process, which must be sorted by address, and its pages.
pub fn write_regions(ground: &mut impl Ground, objects: &mut ObjectManager, process: u64, root: u64, regions: &mut [Region]) {
    for region in regions.iter_mut() {
        let pages = (region.end + 1 - region.start) >> 12;
        let mapped = match &region.kind {
            RegionKind::Private => None,
            RegionKind::Shared => Some(objects.section(ground, 0, false, pages)),
            RegionKind::File(path) => Some(objects.mapped_file(ground, path, false, pages)),
            RegionKind::Image(path) => Some(objects.mapped_file(ground, path, true, pages)),
        };
        region.node = write_node(ground, region, mapped.as_ref(), process);
        pages::write_pages(ground, root, region, mapped.map_or(0, |mapped| mapped.prototypes));
    }
    let nodes: Vec<u64> = regions.iter().map(|region| region.node).collect();
    let at = process + ground.at("_EPROCESS", "VadRoot");
    let tree = Tree::of(ground);
    // Where the parent of the root is, and the member of it that leads to the root.
    let table = ground.bits("_MM_AVL_TABLE", "NumberGenericTableElements");
    let (sentinel, slot) = if table.is_some() { (at, at + tree.right) } else { (0, at) };
    let (top, depth) = tree.link(ground, &nodes, sentinel);
    ground.put_pointer(slot, top);
    if let Some((position, _)) = table {
        ground.put_pointer(at + ground.at("_MMADDRESS_NODE", "u1"), at);
        let count = at + ground.at("_MM_AVL_TABLE", "NumberGenericTableElements");
        ground.put_pointer(count, (nodes.len() as u64) << position | depth);
        let hint = at + ground.at("_MM_AVL_TABLE", "NodeHint");
        ground.put_pointer(hint, top);
    }
    ground.fill_pointer("_EPROCESS", "VadHint", process, top);
    ground.fill_pointer("_EPROCESS", "VadCount", process, nodes.len() as u64);
    ground.fill("_EPROCESS", "NumberOfVads", process, nodes.len() as u64, 4);
}

fn write_node(ground: &mut impl Ground, region: &Region, mapped: Option<&MappedFile>, process: u64) -> u64 {
    let short = "_MMVAD_SHORT";
    let (structure, tag) = if mapped.is_some() { ("_MMVAD", b"Vad ") } else { (short, b"VadS") };
    let size = ground.size_of(structure);
    let node = ground.allocate(tag, size);
    for (member, address) in [("Starting", region.start), ("Ending", region.end)] {
        let page = address >> 12;
        let high = ground.find(short, &format!("{member}VpnHigh"));
        let width = if high.is_some() { 4 } else { ground.pointer() };
        ground.fill(short, &format!("{member}Vpn"), node, page, width);
        if let Some(high) = high {
            ground.put(node + high, page >> 32, 1);
        }
    }
    let image = matches!(region.kind, RegionKind::Image(_));
    let private = u64::from(mapped.is_none());
    let mut flags = ground.field("_MMVAD_FLAGS", "Protection", u64::from(region.protection))
        | ground.field("_MMVAD_FLAGS", "PrivateMemory", private)
        | ground.field("_MMVAD_FLAGS", "MemCommit", private)
        | ground.field("_MMVAD_FLAGS", "CommitCharge", region.commit)
        | ground.field("_MMVAD_FLAGS", "ImageMap", u64::from(image));
    flags |= ground.field("_MMVAD_FLAGS", "VadType", if image { IMAGE_MAP } else { 0 });
    let width = ground.size_of("_MMVAD_FLAGS");
    ground.fill(short, "u", node, flags, width);
    if ground.bits("_MMVAD_FLAGS1", "CommitCharge").is_some() {
        let flags =
            ground.field("_MMVAD_FLAGS1", "CommitCharge", region.commit) | ground.field("_MMVAD_FLAGS1", "MemCommit", private);
        ground.fill(short, "u1", node, flags, 4);
    }
    if let Some(mapped) = mapped {
        let last = mapped.prototypes + ((region.end - region.start) >> 12) * pages::entry_width(ground);
        ground.fill_pointer("_MMVAD", "Subsection", node, mapped.subsection);
        ground.fill_pointer("_MMVAD", "ControlArea", node, mapped.control_area);
        ground.fill_pointer("_MMVAD", "FirstPrototypePte", node, mapped.prototypes);
        ground.fill_pointer("_MMVAD", "LastContiguousPte", node, last);
        ground.fill_pointer("_MMVAD", "VadsProcess", node, process | 1);
        ground.fill_pointer("_MMVAD", "FileObject", node, mapped.file);
    }
    node
}

/// Where a node has its links.
struct Tree {
    left: u64,
    right: u64,
    parent: u64,
    /// Whether the low bits of the parent are the balance.
    balanced: bool,
}

impl Tree {
    fn of(ground: &impl Ground) -> Self {
        let short = "_MMVAD_SHORT";
        if let Some(node) = ground.find(short, "VadNode") {
            let member = |name| node + ground.at("_RTL_BALANCED_NODE", name);
            return Self { left: member("Left"), right: member("Right"), parent: member("ParentValue"), balanced: true };
        }
        let parent = ground.find(short, "Parent");
        Self {
            left: ground.at(short, "LeftChild"),
            right: ground.at(short, "RightChild"),
            parent: parent.unwrap_or_else(|| ground.at(short, "u1")),
            balanced: parent.is_none(),
        }
    }

    /// Links sorted nodes to a tree whose halves differ by at most one level; gives its root and depth.
    fn link(&self, ground: &mut impl Ground, nodes: &[u64], parent: u64) -> (u64, u64) {
        if nodes.is_empty() {
            return (0, 0);
        }
        let middle = nodes.len() / 2;
        let node = nodes[middle];
        let (left, left_depth) = self.link(ground, &nodes[..middle], node);
        let (right, right_depth) = self.link(ground, &nodes[middle + 1..], node);
        ground.put_pointer(node + self.left, left);
        ground.put_pointer(node + self.right, right);
        // Two bits: 0 balanced, 1 right is deeper, 3 left is deeper.
        let balance = if self.balanced { right_depth.wrapping_sub(left_depth) & 3 } else { 0 };
        ground.put_pointer(node + self.parent, parent | balance);
        (node, 1 + left_depth.max(right_depth))
    }
}
