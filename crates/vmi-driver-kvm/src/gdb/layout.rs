//! Which registers a stub shows, and where they lie in its answer to `g` (GDB manual, appendix "Target Descriptions").

use std::collections::BTreeMap;

use gdbstub::arch::RegId;
use gdbstub_arch::x86::reg::id::{X86_64CoreRegId, X86CoreRegId, X86SegmentRegId};
use roxmltree::{Document, Node, ParsingOptions};

use super::error::GdbCause;

/// A description has at most this many documents, this many bytes in all of them, elements in one, and registers.
const MAX_DOCUMENTS: usize = 64;
pub(super) const MAX_BYTES: usize = 1 << 19;
const MAX_NODES: u32 = 50_000;
const MAX_REGISTERS: u64 = 4096;
const MAX_REGISTER_BITS: u64 = 1 << 16;

/// A register of the stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number, for the requests `p` and `P`.
    pub number: u64,
    /// First byte in the answer to `g`.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

/// The registers of a stub by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    places: BTreeMap<String, Place>,
    len: usize,
}

impl Layout {
    /// Reads a target description. `load` gives the document of a name; the first asked for is `target.xml`, the others are those that it
    /// includes.
    ///
    /// # Errors
    /// What `load` returns; [`GdbCause::Description`] if a document is no XML, or one without registers or without measure.
    pub fn read(load: &mut dyn FnMut(&str) -> Result<String, GdbCause>) -> Result<Self, GdbCause> {
        let mut reader = Reader { load, documents: 0, bytes: 0, next: 0, registers: BTreeMap::new() };
        reader.document("target.xml", 0)?;
        Self::new(reader.registers.into_iter().map(|(number, (name, len))| (number, name, len)))
    }

    /// The layout that a stub without a description means, by the length of its answer to `g` in bytes: gdb's own for x86, with 64
    /// or 32 bits.
    ///
    /// # Errors
    /// [`GdbCause::Description`] if the length is neither.
    pub fn without_description(len: usize) -> Result<Self, GdbCause> {
        let wide = Self::numbered(|number| {
            let (id, len) = X86_64CoreRegId::from_raw_id(number)?;
            let name = match id {
                X86_64CoreRegId::Gpr(at) => GENERAL_64.get(usize::from(at))?,
                X86_64CoreRegId::Rip => "rip",
                X86_64CoreRegId::Eflags => "eflags",
                X86_64CoreRegId::Segment(segment) => segment_name(segment),
                _ => "",
            };
            Some((name, len?.get()))
        })?;
        let narrow = Self::numbered(|number| {
            let (id, len) = X86CoreRegId::from_raw_id(number)?;
            let name = match id {
                X86CoreRegId::Eax => "eax",
                X86CoreRegId::Ecx => "ecx",
                X86CoreRegId::Edx => "edx",
                X86CoreRegId::Ebx => "ebx",
                X86CoreRegId::Esp => "esp",
                X86CoreRegId::Ebp => "ebp",
                X86CoreRegId::Esi => "esi",
                X86CoreRegId::Edi => "edi",
                X86CoreRegId::Eip => "eip",
                X86CoreRegId::Eflags => "eflags",
                X86CoreRegId::Segment(segment) => segment_name(segment),
                _ => "",
            };
            Some((name, len?.get()))
        })?;
        [wide, narrow].into_iter().find(|layout| layout.len == len).ok_or_else(|| {
            GdbCause::Description(format!("there is none, and {len} bytes of registers are no layout of x86 that gdb knows"))
        })
    }

    fn numbered(register: impl Fn(usize) -> Option<(&'static str, usize)>) -> Result<Self, GdbCause> {
        let registers =
            (0..).map_while(|number: usize| register(number).map(|(name, len)| (number as u64, name.to_owned(), len)));
        Self::new(registers)
    }

    /// Registers in the order of their numbers lie one behind the other.
    fn new(registers: impl Iterator<Item = (u64, String, usize)>) -> Result<Self, GdbCause> {
        let mut layout = Self::default();
        for (number, name, len) in registers {
            let place = Place { number, offset: layout.len, len };
            layout.len = layout.len.checked_add(len).ok_or_else(|| describe("too many registers"))?;
            layout.places.insert(name, place);
        }
        if !["rip", "eip"].iter().any(|name| layout.places.contains_key(*name)) {
            return Err(describe("it has neither rip nor eip: no x86 machine"));
        }
        Ok(layout)
    }

    /// The place of a register.
    pub fn place(&self, name: &str) -> Option<Place> {
        self.places.get(name).copied()
    }

    /// Bytes of a whole answer to `g`.
    pub fn byte_len(&self) -> usize {
        self.len
    }

    /// The value of a register in an answer to `g`; `None` if the stub does not show it, marks it as unavailable, ended its answer before
    /// it, or if it has more than 64 bits.
    pub fn value(&self, name: &str, answer: &[u8]) -> Option<u64> {
        let place = self.place(name)?;
        let (from, to) = (place.offset.checked_mul(2)?, place.offset.checked_add(place.len)?.checked_mul(2)?);
        let mut bytes = [0; 8];
        let room = bytes.get_mut(..place.len)?;
        super::reply::hex_into(answer.get(from..to)?, room).then(|| u64::from_le_bytes(bytes))
    }
}

const GENERAL_64: [&str; 16] =
    ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

fn segment_name(segment: X86SegmentRegId) -> &'static str {
    match segment {
        X86SegmentRegId::CS => "cs",
        X86SegmentRegId::SS => "ss",
        X86SegmentRegId::DS => "ds",
        X86SegmentRegId::ES => "es",
        X86SegmentRegId::FS => "fs",
        X86SegmentRegId::GS => "gs",
    }
}

fn describe(why: impl Into<String>) -> GdbCause {
    GdbCause::Description(why.into())
}

struct Reader<'l> {
    load: &'l mut dyn FnMut(&str) -> Result<String, GdbCause>,
    documents: usize,
    bytes: usize,
    /// The number of the next register that does not bring its own.
    next: u64,
    registers: BTreeMap<u64, (String, usize)>,
}

impl Reader<'_> {
    fn document(&mut self, name: &str, depth: u32) -> Result<(), GdbCause> {
        self.documents = self.documents.saturating_add(1);
        // A document may include itself.
        if self.documents > MAX_DOCUMENTS || depth > 8 {
            return Err(describe("too many documents include one another"));
        }
        let text = (self.load)(name)?;
        self.bytes = self.bytes.saturating_add(text.len());
        if self.bytes > MAX_BYTES {
            return Err(describe(format!("more than {MAX_BYTES} bytes")));
        }
        let text = plain(&text);
        let options = ParsingOptions { nodes_limit: MAX_NODES, ..ParsingOptions::default() };
        let document = Document::parse_with_options(&text, options).map_err(|error| describe(format!("{name}: {error}")))?;
        for node in document.root().descendants().filter(Node::is_element) {
            match node.tag_name().name() {
                "xi-include" => {
                    let href = node.attribute("href").ok_or_else(|| describe(format!("{name}: an inclusion of nothing")))?;
                    self.document(href, depth.saturating_add(1))?;
                }
                "reg" => self
                    .register(node)
                    .ok_or_else(|| describe(format!("{name}: a register without name, size or a fair number")))?,
                _ => {}
            }
        }
        Ok(())
    }

    fn register(&mut self, node: Node<'_, '_>) -> Option<()> {
        let number = match node.attribute("regnum") {
            Some(number) => number.parse().ok()?,
            None => self.next,
        };
        let bits: u64 = node.attribute("bitsize")?.parse().ok()?;
        if number >= MAX_REGISTERS || bits == 0 || bits > MAX_REGISTER_BITS {
            return None;
        }
        let len = usize::try_from(bits.div_ceil(8)).ok()?;
        self.next = number.checked_add(1)?;
        self.registers.insert(number, (node.attribute("name")?.to_owned(), len));
        Some(())
    }
}

/// Makes of gdb's XML what a parser takes that reads no document type. There the type declares the prefix `xi`; here it becomes a part
/// of the names. What else a type could bring, entities above all, is not wanted: a type with declarations of its own stays, and is refused.
fn plain(text: &str) -> String {
    let text = text.trim_end_matches('\0').replace("<xi:", "<xi-").replace("</xi:", "</xi-");
    let Some(start) = text.find("<!DOCTYPE") else { return text };
    let Some((before, rest)) = text.split_at_checked(start) else { return text };
    match rest.split_once('>') {
        Some((kind, after)) if !kind.contains('[') => format!("{before}{after}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(documents: &[(&str, &str)]) -> Result<Layout, GdbCause> {
        Layout::read(&mut |name| {
            let found = documents.iter().find(|document| document.0 == name);
            found.map(|document| document.1.to_owned()).ok_or_else(|| describe(format!("no {name}")))
        })
    }

    const TARGET: &str = r#"<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target><architecture>i386:x86-64</architecture>
        <xi:include href="a.xml"/><xi:include href="b.xml"></xi:include></target>"#;

    #[test]
    fn registers_of_several_documents() {
        let a = r#"<!-- a --><!DOCTYPE feature SYSTEM "gdb-target.dtd"><feature name="org.gnu.gdb.i386.core">
            <flags id="f" size="4"><field name="" start="22" end="31"/></flags>
            <reg name="rax" bitsize="64" regnum="0"/><reg name="rip" bitsize="64"/><reg name="eflags" bitsize="32" type="f"/></feature>"#;
        let b =
            r#"<feature name="x"><reg name="st0" bitsize="80" regnum="7"/><reg name="cr3" bitsize="64" regnum="4"/></feature>"#;
        let layout = read(&[("target.xml", TARGET), ("a.xml", a), ("b.xml", b)]).unwrap();
        assert_eq!(layout.place("cr3"), Some(Place { number: 4, offset: 20, len: 8 }));
        assert_eq!(layout.byte_len(), 38);
        let answer = b"0100000000000000ffffffffffffffffxxxxxxxx00f0de00000000000000";
        let value = |name| layout.value(name, answer);
        assert_eq!([value("rax"), value("rip"), value("eflags"), value("cr3")], [Some(1), Some(u64::MAX), None, Some(0xde_f000)]);
        assert_eq!([value("st0"), value("rbx")], [None, None]);
    }

    #[test]
    fn hostile_descriptions() {
        let fails = |target: &str, part: &str| match read(&[("target.xml", target)]) {
            Err(GdbCause::Description(why)) => assert!(why.contains(part), "{why}"),
            other => panic!("{other:?}"),
        };
        fails("<target><xi:include href=\"target.xml\"/></target>", "include one another");
        fails("<target><xi:include/></target>", "inclusion of nothing");
        fails("<target><reg name=\"rip\" bitsize=\"64\" regnum=\"99999\"/></target>", "fair number");
        fails("<target><reg name=\"rip\" bitsize=\"0\"/></target>", "size");
        fails("<target><reg name=\"r0\" bitsize=\"32\"/></target>", "no x86 machine");
        fails("<!DOCTYPE t [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]><target>&b;</target>", "DTD");
        fails(&format!("<target>{}", "<a/>".repeat(60_000)), "nodes");
        fails(&"<target>".repeat(20_000), "");
        fails(&" ".repeat(MAX_BYTES + 1), "bytes");
        fails("", "");
    }

    #[test]
    fn layouts_without_description() {
        let wide = Layout::without_description(0x218).unwrap();
        assert_eq!(wide.place("rip"), Some(Place { number: 16, offset: 128, len: 8 }));
        assert_eq!(wide.place("gs"), Some(Place { number: 23, offset: 160, len: 4 }));
        let narrow = Layout::without_description(0x134).unwrap();
        assert_eq!(narrow.place("eip"), Some(Place { number: 8, offset: 32, len: 4 }));
        assert_eq!(narrow.place("rip"), None);
        assert!(Layout::without_description(100).is_err());
    }

    proptest! {
        #[test]
        fn any_description(parts in prop::collection::vec(prop::sample::select(vec![
            "<target>", "</target>", "<reg name=\"rip\" bitsize=\"64\"", " regnum=\"4095\"", "/>", "<xi:include href=\"a\"/>", "<!DOCTYPE", "[", "]>",
            "<!ENTITY a \"b\">", "&a;", "<!--", "-->", "\0", "é", ">",
        ]), 0..20)) {
            let text: String = parts.concat();
            let _ = read(&[("target.xml", &text), ("a", "<a><reg name=\"eip\" bitsize=\"32\"/></a>")]);
        }
    }
}
