//! Types of modules: BTF that continues the kernel's (kernel/bpf/btf.c).

use std::sync::Arc;

use vmi_arch_x86::X86Driver;
use vmi_core::{
    Error, ErrorKind, Memory, Paging, Result, TypeSource, VirtAddr,
    list::{self, rows},
};

use crate::Linux;
use crate::btf::{self, Btf, BtfError};

/// As many as there can be modules.
const MAX_MODULES: usize = 1 << 16;

impl<D: X86Driver> Linux<'_, D> {
    /// The types of a loaded module, the kernel's included.
    ///
    /// The kernel drops what `struct module` itself says of its BTF once the module is loaded, so the list `btf_modules` is searched (since
    /// 5.11, commit 36e68442d1af).
    ///
    /// # Errors
    /// [`ErrorKind::NoObject`] if no such module carries types, [`ErrorKind::NoSymbol`] if the kernel has no such list,
    /// [`ErrorKind::Corrupt`] if what it carries is no BTF; as [`Memory::read_into`].
    pub fn module_types(&self, module: &str) -> Result<Arc<dyn TypeSource>> {
        let layout = &self.layout.btf_module;
        let nodes = |head| list::nodes(&self.space, head, "the list of module types", MAX_MODULES, |_| Ok(0));
        for node in rows(self.symbol("btf_modules").map(nodes)) {
            let entry = layout.list.owner(node?.at)?;
            let owner = crate::Module { linux: self, at: self.pointer(entry, layout.module)? };
            match owner.name() {
                Ok(name) if name == module => {}
                Ok(_) => continue,
                Err(error) if matches!(error.kind(), ErrorKind::Gone { .. }) => continue,
                Err(error) => return Err(error),
            }
            let at = self.pointer(entry, layout.btf)?;
            let data = self.pointer(at, self.layout.btf.data)?;
            let bytes = owner.whole(self.btf_bytes(data, u64::from(self.read::<u32>(at, self.layout.btf.data_size)?)))?;
            let types = Btf::parse_split(self.kernel_btf()?, bytes).map_err(|error| broken(&error, data))?;
            return Ok(Arc::new(types.with_origin(format!("BTF of the module {module} in guest memory"))));
        }
        Err(ErrorKind::NoObject { what: format!("module {module} with types") }.into())
    }

    /// The kernel's own BTF, which its modules' refer to: read where its symbols say, whatever the types in use came from.
    pub(crate) fn kernel_btf(&self) -> Result<Arc<Btf>> {
        if let Some(btf) = self.base_btf.get() {
            return Ok(Arc::clone(btf));
        }
        let (start, stop) = (self.symbol("__start_BTF")?, self.symbol("__stop_BTF")?);
        let bytes = self.btf_bytes(start, stop.offset_from(start).unwrap_or(u64::MAX))?;
        let pointer_size = self.space.mode().pointer_size() as u64;
        let btf = Arc::new(Btf::parse(bytes, pointer_size).map_err(|error| broken(&error, start))?);
        Ok(Arc::clone(self.base_btf.get_or_init(|| btf)))
    }

    fn btf_bytes(&self, at: VirtAddr, len: u64) -> Result<Vec<u8>> {
        match usize::try_from(len) {
            Ok(len) if len <= btf::MAX_LEN => self.space.read_vec(at, len),
            _ => Err(Error::corrupt(format!("BTF of {len} bytes"), at)),
        }
    }
}

fn broken(error: &BtfError, at: VirtAddr) -> Error {
    Error::corrupt(error.to_string(), at)
}
