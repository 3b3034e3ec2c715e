//! memflow over the same image, mapped, without caches: its fastest road for hot reads.

use std::fs::File;
use std::path::Path;

use memflow::architecture::x86::x64;
use memflow::connector::MmapInfo;
use memflow::mem::{DirectTranslate, MemoryMap, MemoryView, PhysicalMemory, VirtualDma, VirtualTranslate2};
use memflow::types::Address;

type Connector = memflow::connector::ReadMappedFilePhysicalMemory<'static>;

pub struct Memflow {
    memory: Connector,
    translate: DirectTranslate,
    root: Address,
    /// Reads through the page tables at `root`.
    read_virtual: Box<dyn FnMut(u64) -> u64>,
}

impl Memflow {
    pub fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let mut map = MemoryMap::new();
        map.push_remap(Address::NULL, file.metadata().unwrap().len(), Address::NULL);
        let memory = MmapInfo::try_with_filemap(file, map).unwrap().into_connector();
        Self { memory, translate: DirectTranslate::new(), root: Address::NULL, read_virtual: Box::new(|_| 0) }
    }

    pub fn use_root(&mut self, root: u64) {
        self.root = Address::from(root);
        let mut space = VirtualDma::new(self.memory.clone(), x64::ARCH, x64::new_translator(self.root));
        self.read_virtual = Box::new(move |at| space.read(Address::from(at)).unwrap());
    }

    pub fn read_u32(&mut self, at: u64) -> u32 {
        self.memory.phys_view().read(Address::from(at)).unwrap()
    }

    pub fn read_u64(&mut self, at: u64) -> u64 {
        self.memory.phys_view().read(Address::from(at)).unwrap()
    }

    pub fn read_into(&mut self, at: u64, to: &mut [u8]) {
        self.memory.phys_view().read_raw_into(Address::from(at), to).unwrap();
    }

    pub fn translate(&mut self, at: u64) -> u64 {
        let translator = x64::new_translator(self.root);
        self.translate.virt_to_phys(&mut self.memory, &translator, Address::from(at)).unwrap().address().to_umem()
    }

    pub fn read_virtual_u64(&mut self, at: u64) -> u64 {
        (self.read_virtual)(at)
    }
}
