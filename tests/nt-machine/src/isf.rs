//! The symbol file of a machine in Volatility 3's format, <https://github.com/volatilityfoundation/volatility3/tree/develop/volatility3/schemas>.

use serde_json::{Map, Value, json};

use crate::NtMachine;
use crate::layout::Kind;
use crate::objects::structures::add_to_symbol_file;
use crate::pointers::target;

impl NtMachine {
    /// A symbol file (schema 6.2.0) for exactly this machine: the structures of its build, the kernel's symbols, the identity of its program database. Of a
    /// build that was made with a real symbol file it is that file, with the symbols that the machine has beyond it.
    pub fn isf(&self) -> Value {
        let mut symbols = Map::new();
        for (name, rva) in &self.image.symbols {
            symbols.insert(name.clone(), json!({"address": rva}));
        }
        if let Some(real) = &self.build.isf {
            let mut isf = real.clone();
            let all = isf["symbols"].as_object_mut().expect("symbols are an object");
            for (name, symbol) in symbols {
                all.entry(name).or_insert(symbol);
            }
            return isf;
        }
        let pdb = self.image.pdb.as_ref().expect("every kernel has one");
        let mut types = Map::new();
        for (name, of) in self.build.layout.structs.iter().filter(|(name, _)| !self.build.layout.borrowed.contains(name)) {
            let mut fields = Map::new();
            for (member, offset) in &of.members {
                let kind = of.kinds.get(member).unwrap_or(&Kind::Any);
                fields.insert(
                    member.clone(),
                    json!({"offset": offset, "type": self.isf_type(kind, *offset, target(name, member))}),
                );
            }
            types.insert(name.clone(), json!({"kind": "struct", "size": self.build.layout.size(name), "fields": fields}));
        }
        if self.build.layout.borrowed.is_empty() {
            add_to_symbol_file(&mut types, self.build.is_64_bit, self.build.number);
        }
        // Structures that members name, and those without which Volatility 3 does not load a symbol file of Windows.
        let named: Vec<String> = types.values().flat_map(named_structures).collect();
        for name in named.into_iter().chain(WANTED.iter().map(|name| (*name).to_owned())) {
            types.entry(name).or_insert_with(|| json!({"kind": "struct", "size": 1, "fields": {}}));
        }
        let pointer = self.build.pointer();
        let machine: u32 = if self.build.is_64_bit { 0x8664 } else { 0x14C };
        let number =
            |size: u64, signed: bool, kind: &str| json!({"endian": "little", "kind": kind, "signed": signed, "size": size});
        json!({
            "metadata": {
                "format": "6.2.0",
                "producer": {"name": "nt-machine", "version": "1.0.0", "datetime": "2024-03-01T12:00:00.000000"},
                "windows": {"pdb": {"GUID": pdb.guid, "age": pdb.age, "database": pdb.name, "machine_type": machine}},
            },
            "base_types": {
                "char": number(1, true, "char"), "unsigned char": number(1, false, "char"), "short": number(2, true, "int"),
                "unsigned short": number(2, false, "int"), "long": number(4, true, "int"), "unsigned long": number(4, false, "int"),
                "int": number(4, true, "int"), "unsigned int": number(4, false, "int"), "long long": number(8, true, "int"),
                "unsigned long long": number(8, false, "int"), "wchar": number(2, true, "int"), "void": number(0, true, "void"),
                "pointer": number(pointer, false, "int"),
            },
            "user_types": types,
            "enums": {},
            "symbols": symbols,
        })
    }

    fn isf_type(&self, kind: &Kind, offset: u64, target: &str) -> Value {
        let base = |name: &str| json!({"kind": "base", "name": name});
        let unsigned = |size: u64| {
            base(["unsigned char", "unsigned short", "unsigned long", "unsigned long long"][size.trailing_zeros() as usize])
        };
        match kind {
            Kind::Any => base("unsigned char"),
            Kind::Unsigned(size) => unsigned(*size),
            Kind::Signed(size) => base(["char", "short", "long", "long long"][size.trailing_zeros() as usize]),
            Kind::Pointer => match target {
                "void" | "wchar" => json!({"kind": "pointer", "subtype": base(target)}),
                _ => json!({"kind": "pointer", "subtype": {"kind": "struct", "name": target}}),
            },
            Kind::Bits { lowest, width } => {
                let position = lowest - offset * 8;
                let holder = (position + width).div_ceil(8).next_power_of_two();
                json!({"kind": "bitfield", "bit_position": position, "bit_length": width, "type": unsigned(holder)})
            }
            Kind::Struct(name) => json!({"kind": "struct", "name": name}),
            Kind::Array(of, count) => json!({"kind": "array", "count": count, "subtype": self.isf_type(of, offset, target)}),
        }
    }
}

fn named_structures(of: &Value) -> Vec<String> {
    let mut names = Vec::new();
    for field in of["fields"].as_object().into_iter().flat_map(Map::values) {
        let mut kind = &field["type"];
        while kind["subtype"].is_object() {
            kind = &kind["subtype"];
        }
        if kind["kind"] == "struct" {
            names.extend(kind["name"].as_str().map(str::to_owned));
        }
    }
    names
}

const WANTED: &[&str] = &[
    "_ERESOURCE",
    "_OBJECT_HEADER",
    "_POOL_HEADER",
    "_EX_FAST_REF",
    "_DEVICE_OBJECT",
    "_CM_KEY_BODY",
    "_CMHIVE",
    "_CM_KEY_NODE",
    "_CM_KEY_VALUE",
    "_HMAP_ENTRY",
    "_MMVAD_SHORT",
    "_MMVAD",
    "_KSYSTEM_TIME",
    "_KMUTANT",
    "_DRIVER_OBJECT",
    "_OBJECT_SYMBOLIC_LINK",
    "_CONTROL_AREA",
    "_SHARED_CACHE_MAP",
    "_VACB",
    "_POOL_TRACKER_BIG_PAGES",
    "_IMAGE_DOS_HEADER",
    "_KTIMER",
    "_LDR_DATA_TABLE_ENTRY",
    "_FILE_OBJECT",
    "_TOKEN",
    "_KTHREAD",
    "_ETHREAD",
];
