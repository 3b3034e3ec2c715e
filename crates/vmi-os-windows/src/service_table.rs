//! The kernel's table of system services: `KeServiceDescriptorTable`.

use vmi_arch_x86::X86Driver;
use vmi_core::{Error, Memory, Result, VirtAddr};

use crate::Windows;

/// A service number has 12 bits within its table.
const MAX_SERVICES: u64 = 0x1000;

/// A system service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Service {
    /// Its number: what a program puts into a register before the system call.
    pub number: u32,
    /// The function that serves it.
    pub target: VirtAddr,
    /// How many bytes of arguments lie on the stack; on 64-bit systems those behind the four in registers.
    pub stack_arguments: u32,
    /// The symbol at or before the function, and the bytes from there: `NtCreateFile`, 0.
    pub symbol: Option<(String, u64)>,
    /// The kernel module that the function is in; `None` if it is in none of them, or their list cannot be read.
    pub module: Option<String>,
    /// Whether the function is outside of the kernel's image: in a clean system none is.
    pub outside: bool,
}

/// How the elements of the table name functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Addresses, in 32-bit kernels.
    Address,
    /// Distances from the table, shifted by 4 bits, since Windows Vista; arguments in the low 4 bits.
    Shifted,
    /// Distances from the table that are not shifted, before; arguments in the low 4 bits, which no function's address needs.
    Plain,
}

impl Form {
    /// The function that an element of the table at `table` names, and its number of arguments on the stack where the element has it.
    fn decode(self, table: VirtAddr, element: u32) -> (VirtAddr, Option<u32>) {
        let signed = i64::from(element.cast_signed());
        match self {
            Self::Address => (VirtAddr::new(u64::from(element)), None),
            Self::Shifted => (table.wrapping_add((signed >> 4).cast_unsigned()), Some(element & 0xf)),
            Self::Plain => (table.wrapping_add((signed & !0xf).cast_unsigned()), Some(element & 0xf)),
        }
    }
}

impl<D: X86Driver> Windows<'_, D> {
    /// The system services of the kernel itself, by number. (Those of the window manager, `win32k.sys`, are not in this table.)
    ///
    /// A function outside of the kernel's image is marked; so are hooks found. What replaces the first bytes of a function is not found by this.
    ///
    /// # Errors
    /// [`ErrorKind::NoSymbol`](vmi_core::ErrorKind::NoSymbol) if neither `KeServiceDescriptorTable` nor `KiServiceTable` and `KiServiceLimit` are known;
    /// [`ErrorKind::Corrupt`](vmi_core::ErrorKind::Corrupt) if the table is longer than it can be; as [`Memory::read_into`].
    pub fn services(&self) -> Result<Vec<Service>> {
        let (table, count, arguments) = self.service_table()?;
        if count == 0 || count > MAX_SERVICES {
            return Err(Error::corrupt(format!("a table of {count} system services"), table));
        }
        let count = usize::try_from(count).unwrap_or(0);
        let elements = self.bytes_at(table, count.saturating_mul(4))?;
        let elements: Vec<u32> = elements.as_chunks::<4>().0.iter().map(|element| u32::from_le_bytes(*element)).collect();
        // The table of arguments is not needed where elements have their number.
        let arguments = arguments.filter(|at| !at.is_null()).and_then(|at| self.bytes_at(at, count).ok()).unwrap_or_default();
        let form = self.service_form(table, &elements);
        let modules = self.module_ranges();
        let kernel = self.kernel();
        let services = elements.iter().enumerate().map(|(index, &element)| {
            let (target, stacked) = form.decode(table, element);
            let outside = target.offset_from(kernel.base).is_none_or(|offset| offset >= kernel.size);
            let inside =
                |(base, size, _): &&(VirtAddr, u64, String)| target.offset_from(*base).is_some_and(|offset| offset < *size);
            let nearest = self.symbols().nearest(target).filter(|_| !outside);
            Service {
                number: u32::try_from(index).unwrap_or(u32::MAX),
                target,
                stack_arguments: match stacked {
                    Some(arguments) => arguments.saturating_mul(8),
                    None => arguments.get(index).map_or(0, |&bytes| u32::from(bytes)),
                },
                symbol: nearest.map(|(symbol, offset)| (symbol.name.to_owned(), offset)),
                module: modules.iter().find(inside).map(|(_, _, name)| name.clone()),
                outside,
            }
        });
        Ok(services.collect())
    }

    /// Where the table is, how many services it has, and where their arguments are.
    fn service_table(&self) -> Result<(VirtAddr, u64, Option<VirtAddr>)> {
        // The descriptor: the table, counters, the number of services, their arguments.
        let by_descriptor = || -> Result<_> {
            let descriptor = self.symbol("KeServiceDescriptorTable")?;
            let word = |index: u64| self.pointer_at(descriptor.wrapping_add(self.pointer_size().wrapping_mul(index)));
            let (table, count, arguments) = (word(0)?, word(2)?, word(3)?);
            if table.is_null() {
                return Err(Error::corrupt("the descriptor of system services names no table", descriptor));
            }
            // The count is 32 bits wide.
            Ok((table, count.get() & 0xffff_ffff, Some(arguments)))
        };
        by_descriptor().or_else(|error| {
            let by_parts = || -> Result<_> {
                let count: u32 = self.space.read(self.symbol("KiServiceLimit")?)?;
                Ok((self.symbol("KiServiceTable")?, u64::from(count), self.symbol("KiArgumentTable").ok()))
            };
            by_parts().map_err(|_| error)
        })
    }

    fn service_form(&self, table: VirtAddr, elements: &[u32]) -> Form {
        if self.pointer_size() == 4 {
            return Form::Address;
        }
        let kernel = self.kernel();
        let inside = |form: Form| {
            let targets = elements.iter().map(|&element| form.decode(table, element).0);
            targets.filter(|target| target.offset_from(kernel.base).is_some_and(|offset| offset < kernel.size)).count()
        };
        // Shifted distances that are read as plain ones are sixteen times too long: most lead out of the kernel.
        if inside(Form::Plain) > elements.len() / 2 { Form::Plain } else { Form::Shifted }
    }

    /// Where the kernel's modules are. What of the list can be read is used: it only names what lies in a module.
    fn module_ranges(&self) -> Vec<(VirtAddr, u64, String)> {
        let range =
            |module: crate::KernelModule<'_, '_, D>| Some((module.base().ok()?, module.size().ok()?, module.name().ok()?));
        self.kernel_modules().flatten().filter_map(range).collect()
    }
}
