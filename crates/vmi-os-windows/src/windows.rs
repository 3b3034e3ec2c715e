//! The handle on a Windows guest.

use core::fmt;

use vmi_arch_x86::X86Driver;
use vmi_core::{AddressSpace, KernelField, Memory, Result, Symbols, TypeSource, VirtAddr, Vmi};
use zerocopy::{FromBytes, IntoBytes};

use crate::Kernel;
use crate::layout::Layout;
use crate::object_state::ObjectState;

/// A Windows guest: its processes, modules, handles and symbols.
pub struct Windows<'v, D: X86Driver> {
    pub(crate) space: AddressSpace<'v, D>,
    pub(crate) layout: Layout,
    /// What is known about objects; see [`ObjectState`].
    pub(crate) objects: ObjectState<'v, D>,
    kernel: Kernel,
}

/// Why a machine could not be read as a Windows guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {}

impl<'v, D: X86Driver> Windows<'v, D> {
    /// Reads the machine by a kernel that was found before, or put together from files.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn with_kernel(vmi: &'v Vmi<D>, kernel: Kernel) -> Result<Self, AttachError> {
        let space = vmi.address_space(kernel.root, kernel.mode);
        let layout = Layout::new(&*kernel.types);
        let objects = ObjectState::new(&*kernel.types);
        Ok(Self { space, layout, objects, kernel })
    }

    /// The machine.
    pub fn vmi(&self) -> &'v Vmi<D> {
        self.space.vmi()
    }

    /// What was found out about the kernel.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The kernel's own address space.
    pub fn kernel_space(&self) -> &AddressSpace<'v, D> {
        &self.space
    }

    /// Layouts of the kernel's structures.
    pub fn types(&self) -> &dyn TypeSource {
        &*self.kernel.types
    }

    /// The kernel's symbols.
    pub fn symbols(&self) -> &Symbols {
        &self.kernel.symbols
    }

    /// The address of a symbol of the kernel itself.
    pub(crate) fn symbol(&self, name: &str) -> Result<VirtAddr> {
        self.kernel.symbols.address(name)
    }

    /// Reads a member of the object at `object`.
    #[inline]
    pub(crate) fn read<T: FromBytes + IntoBytes>(&self, object: VirtAddr, member: KernelField) -> Result<T> {
        self.space.read(member.of(object)?)
    }

    /// Reads a pointer, or a number as wide as one, of the object at `object`.
    #[inline]
    pub(crate) fn pointer(&self, object: VirtAddr, member: KernelField) -> Result<VirtAddr> {
        self.space.read_pointer(member.of(object)?)
    }

    /// As [`Windows::pointer`], with a null pointer as `None`.
    #[inline]
    pub(crate) fn pointer_or_null(&self, object: VirtAddr, member: KernelField) -> Result<Option<VirtAddr>> {
        Ok(Some(self.pointer(object, member)?).filter(|pointer| !pointer.is_null()))
    }
}

impl<D: X86Driver> fmt::Debug for Windows<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Windows").field("build", &self.kernel.build).field("space", &self.space).finish_non_exhaustive()
    }
}
