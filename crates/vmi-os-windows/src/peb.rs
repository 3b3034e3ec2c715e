//! The process environment block: what a program was started with, and where the loader's lists are. It is in the process's own memory, which the process may
//! change as it likes, and of which parts may be paged out.
//!
//! The members that are read here lie at the same places in all releases from XP to 11 (public symbols of `ntdll.dll`, `winternl.h`). Where the types of the kernel
//! describe them, those are used; the 32-bit ones of a WoW64 process, which no 64-bit kernel's types describe, are those of the 32-bit releases.

use vmi_arch_x86::X86Driver;
use vmi_core::{Error, KernelField, Memory, Result, VirtAddr};

use crate::unicode_string::{self, Width};
use crate::{Process, ProcessMemory, Windows};

/// The most bytes of an environment that are read. Windows has no limit since Vista; before, it was 64 KiB.
const MAX_ENVIRONMENT: usize = 4 << 20;

/// Where the members are that are read in user memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UserLayout {
    pub(crate) width: Width,
    image_base: u64,
    loader: u64,
    parameters: u64,
    session: u64,
    current_directory: u64,
    image_path: u64,
    command_line: u64,
    environment: u64,
    /// The three lists of modules.
    pub(crate) lists: [u64; 3],
    /// A module's nodes of these lists.
    pub(crate) links: [u64; 3],
    pub(crate) base: u64,
    pub(crate) entry_point: u64,
    pub(crate) size: u64,
    pub(crate) full_name: u64,
    pub(crate) name: u64,
    pub(crate) load_count: u64,
    pub(crate) time_stamp: u64,
}

impl UserLayout {
    /// Of 32-bit programs.
    const BITS32: Self = Self {
        width: Width::Bits32,
        image_base: 0x08,
        loader: 0x0c,
        parameters: 0x10,
        session: 0x1d4,
        current_directory: 0x24,
        image_path: 0x38,
        command_line: 0x40,
        environment: 0x48,
        lists: [0x0c, 0x14, 0x1c],
        links: [0x00, 0x08, 0x10],
        base: 0x18,
        entry_point: 0x1c,
        size: 0x20,
        full_name: 0x24,
        name: 0x2c,
        load_count: 0x38,
        time_stamp: 0x44,
    };

    /// Of 64-bit programs.
    const BITS64: Self = Self {
        width: Width::Bits64,
        image_base: 0x10,
        loader: 0x18,
        parameters: 0x20,
        session: 0x2c0,
        current_directory: 0x38,
        image_path: 0x60,
        command_line: 0x70,
        environment: 0x80,
        lists: [0x10, 0x20, 0x30],
        links: [0x00, 0x10, 0x20],
        base: 0x30,
        entry_point: 0x38,
        size: 0x40,
        full_name: 0x48,
        name: 0x58,
        load_count: 0x6c,
        time_stamp: 0x80,
    };

    fn of<D: X86Driver>(windows: &Windows<'_, D>, wow64: bool) -> Self {
        let usual = match windows.width() {
            Width::Bits32 => Self::BITS32,
            Width::Bits64 if wow64 => return Self::BITS32,
            Width::Bits64 => Self::BITS64,
        };
        let or = |member: KernelField, usual: u64| member.offset().unwrap_or(usual);
        let (peb, parameters) = (&windows.layout.peb, &windows.layout.parameters);
        let (loader, module) = (&windows.layout.loader, &windows.layout.module);
        let ([load, memory, initialization], links) = (usual.lists, usual.links);
        Self {
            width: usual.width,
            image_base: or(peb.image_base, usual.image_base),
            loader: or(peb.loader, usual.loader),
            parameters: or(peb.parameters, usual.parameters),
            session: or(peb.session, usual.session),
            current_directory: or(parameters.current_directory, usual.current_directory),
            image_path: or(parameters.image_path, usual.image_path),
            command_line: or(parameters.command_line, usual.command_line),
            environment: or(parameters.environment, usual.environment),
            lists: [
                or(loader.load_order, load),
                or(loader.memory_order, memory),
                or(loader.initialization_order, initialization),
            ],
            links: [
                or(module.load_links, links[0]),
                or(module.memory_links, links[1]),
                or(module.initialization_links, links[2]),
            ],
            base: or(module.base, usual.base),
            entry_point: or(module.entry_point, usual.entry_point),
            size: or(module.size, usual.size),
            full_name: or(module.full_name, usual.full_name),
            name: or(module.name, usual.name),
            load_count: or(module.load_count, usual.load_count),
            time_stamp: or(module.time_stamp, usual.time_stamp),
        }
    }
}

/// A process environment block.
///
/// A page of it that is not in memory is the error [`PagedOut`](vmi_core::ErrorKind::PagedOut), never a guess.
#[derive(Debug)]
pub struct Peb<'w, 'v, D: X86Driver> {
    pub(crate) memory: ProcessMemory<'w, 'v, D>,
    at: VirtAddr,
    pub(crate) layout: UserLayout,
}

impl<'w, 'v, D: X86Driver> Process<'w, 'v, D> {
    /// Its process environment block; `None` if it has none, as System.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn peb(&self) -> Result<Option<Peb<'w, 'v, D>>> {
        self.peb_at(self.peb_address()?, false)
    }

    /// Its 32-bit process environment block; `None` unless it is a 32-bit process of a 64-bit system.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn wow64_peb(&self) -> Result<Option<Peb<'w, 'v, D>>> {
        self.peb_at(self.wow64_peb_address()?, true)
    }

    fn peb_at(&self, at: Option<VirtAddr>, wow64: bool) -> Result<Option<Peb<'w, 'v, D>>> {
        let Some(at) = at else { return Ok(None) };
        Ok(Some(Peb { memory: self.memory()?, at, layout: UserLayout::of(self.windows, wow64) }))
    }

    /// What its program was started with, as one string; `None` if it was started without. A 32-bit process of a 64-bit system has it twice; this is the 64-bit one.
    ///
    /// # Errors
    /// As [`Peb::command_line`].
    pub fn command_line(&self) -> Result<Option<String>> {
        let Some(peb) = self.peb()? else { return Ok(None) };
        self.whole(vmi_core::live::settled(self.windows.vmi(), "a command line", || peb.command_line()))
    }
}

impl<D: X86Driver> Peb<'_, '_, D> {
    /// Where it is.
    pub fn address(&self) -> VirtAddr {
        self.at
    }

    fn pointer(&self, offset: u64) -> Result<Option<VirtAddr>> {
        let pointer = self.layout.width.pointer(&self.memory, self.at.wrapping_add(offset))?;
        Ok(Some(pointer).filter(|pointer| !pointer.is_null()))
    }

    /// Where the program was loaded.
    ///
    /// # Errors
    /// As [`Memory::read_into`]; [`PagedOut`](vmi_core::ErrorKind::PagedOut) for a page that is not in memory. The same holds for all methods that follow.
    pub fn image_base(&self) -> Result<Option<VirtAddr>> {
        self.pointer(self.layout.image_base)
    }

    /// The session that it belongs to.
    ///
    /// # Errors
    /// As [`Peb::image_base`].
    pub fn session(&self) -> Result<u32> {
        self.memory.read(self.at.wrapping_add(self.layout.session))
    }

    /// Where the loader's lists are; `None` before the loader has started.
    pub(crate) fn loader(&self) -> Result<Option<VirtAddr>> {
        self.pointer(self.layout.loader)
    }

    /// A string of the parameters; `None` if the process has none yet.
    fn parameter(&self, offset: u64) -> Result<Option<String>> {
        let Some(parameters) = self.pointer(self.layout.parameters)? else { return Ok(None) };
        unicode_string::read(&self.memory, parameters.wrapping_add(offset), self.layout.width).map(Some)
    }

    /// The command line, as one string.
    ///
    /// # Errors
    /// As [`Peb::image_base`]; [`ErrorKind::Corrupt`](vmi_core::ErrorKind::Corrupt) for a string that cannot be.
    pub fn command_line(&self) -> Result<Option<String>> {
        self.parameter(self.layout.command_line)
    }

    /// The path of the program as it was started: `C:\Windows\System32\svchost.exe`.
    ///
    /// # Errors
    /// As [`Peb::command_line`].
    pub fn image_path(&self) -> Result<Option<String>> {
        self.parameter(self.layout.image_path)
    }

    /// The current directory.
    ///
    /// # Errors
    /// As [`Peb::command_line`].
    pub fn current_directory(&self) -> Result<Option<String>> {
        self.parameter(self.layout.current_directory)
    }

    /// The environment: `NAME=value` each, those with a drive's current directory (`=C:=C:\Windows`) included; none if the process has none.
    ///
    /// It ends at an empty string.
    ///
    /// # Errors
    /// As [`Peb::image_base`]; [`ErrorKind::Corrupt`](vmi_core::ErrorKind::Corrupt) if it does not end within 4 MiB.
    pub fn environment(&self) -> Result<Vec<String>> {
        let Some(parameters) = self.pointer(self.layout.parameters)? else { return Ok(Vec::new()) };
        let start = parameters.wrapping_add(self.layout.environment);
        let start = self.layout.width.pointer(&self.memory, start)?;
        let (mut strings, mut read) = (Vec::new(), 0usize);
        if start.is_null() {
            return Ok(strings);
        }
        loop {
            let left = MAX_ENVIRONMENT.saturating_sub(read) / 2;
            let at = start.wrapping_add(read as u64);
            if left == 0 {
                return Err(Error::corrupt(format!("an environment of more than {MAX_ENVIRONMENT} bytes"), start));
            }
            let units = self.memory.read_utf16(at, left)?;
            if units.is_empty() {
                return Ok(strings);
            }
            read = read.saturating_add(units.len().saturating_add(1).saturating_mul(2));
            strings.push(String::from_utf16_lossy(&units));
        }
    }
}

/// The arguments of a command line, as most programs take it apart: the rules of `CommandLineToArgvW` (Microsoft's documentation of the Win32 API).
///
/// The program's name ends at a blank, or if it starts with a quotation mark, at the next one. In the arguments behind it, quotation marks hold blanks together, and
/// backslashes before a quotation mark count half, an odd one making it an ordinary character.
pub fn arguments(command_line: &str) -> Vec<String> {
    let mut arguments = Vec::new();
    let rest = command_line.trim_start_matches([' ', '\t']);
    let (program, mut rest) = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
        None => rest.split_once([' ', '\t']).unwrap_or((rest, "")),
    };
    arguments.push(program.to_owned());
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            return arguments;
        }
        let (argument, behind) = first_argument(rest);
        arguments.push(argument);
        rest = behind;
    }
}

fn first_argument(text: &str) -> (String, &str) {
    let (mut argument, mut quoted) = (String::new(), false);
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        match character {
            ' ' | '\t' if !quoted => return (argument, text.get(at..).unwrap_or_default()),
            '\\' => {
                let mut count = 1usize;
                while characters.next_if(|(_, next)| *next == '\\').is_some() {
                    count = count.saturating_add(1);
                }
                let before_mark = characters.peek().is_some_and(|(_, next)| *next == '"');
                argument.extend(std::iter::repeat_n('\\', if before_mark { count / 2 } else { count }));
                if before_mark && count % 2 == 1 {
                    characters.next();
                    argument.push('"');
                }
            }
            '"' if quoted && characters.next_if(|(_, next)| *next == '"').is_some() => argument.push('"'),
            '"' => quoted = !quoted,
            other => argument.push(other),
        }
    }
    (argument, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::arguments;

    /// Examples of Microsoft's documentation of the command-line rules.
    #[test]
    fn command_lines_are_taken_apart() {
        let cases: [(&str, &[&str]); 8] = [
            (r#"p "abc" d e"#, &["p", "abc", "d", "e"]),
            (r#"p a\\\b d"e f"g h"#, &["p", r"a\\\b", "de fg", "h"]),
            (r#"p a\\\"b c d"#, &["p", r#"a\"b"#, "c", "d"]),
            (r#"p a\\\\"b c" d e"#, &["p", r"a\\b c", "d", "e"]),
            (r#"p a"b"" c d"#, &["p", r#"ab" c d"#]),
            (r#""C:\Program Files\p.exe" -x"#, &[r"C:\Program Files\p.exe", "-x"]),
            (r"C:\Windows\system32\svchost.exe -k netsvcs -p", &[r"C:\Windows\system32\svchost.exe", "-k", "netsvcs", "-p"]),
            ("", &[""]),
        ];
        for (line, expected) in cases {
            assert_eq!(arguments(line), expected, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_taken_apart(line in ".{0,60}") {
            prop_assert!(arguments(&line).len() <= line.chars().count() + 1);
        }
    }
}
