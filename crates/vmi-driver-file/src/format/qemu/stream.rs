//! The stream's sections up to the end of the memory.

use super::cursor::Cursor;
use super::ram::Ram;
use crate::FormatError;
use crate::image::Input;

/// What the sections up to the devices' state tell.
#[derive(Debug)]
pub(super) struct Stream {
    /// Such as `pc-q35-7.2`; `None` if the machine was told not to send it.
    pub(super) machine: Option<String>,
    /// Whether memory lies at fixed places.
    pub(super) mapped_ram: bool,
    pub(super) ram: Ram,
    /// Where the state of devices starts.
    pub(super) devices_at: u64,
    /// Whether memory was read up to its end; else the file is cut short and that is allowed.
    pub(super) whole: bool,
}

/// Kinds of sections: migration/savevm.h.
mod kind {
    pub(super) const END_OF_FILE: u8 = 0;
    pub(super) const START: u8 = 1;
    pub(super) const PART: u8 = 2;
    pub(super) const END: u8 = 3;
    pub(super) const FULL: u8 = 4;
    pub(super) const SUBSECTION: u8 = 5;
    pub(super) const CONFIGURATION: u8 = 7;
    pub(super) const COMMAND: u8 = 8;
    pub(super) const FOOTER: u8 = 0x7e;
}

/// What the sender was told, as far as the stream says it.
#[derive(Debug, Default)]
pub(super) struct Capabilities {
    pub(super) ignore_shared: bool,
    pub(super) mapped_ram: bool,
}

/// Reads the sections of memory. With truncated files allowed, what there is of them.
pub(super) fn read(input: Input<'_>, offset: u64) -> Result<Stream, FormatError> {
    let mut walk = Walk {
        cursor: Cursor::new(input.source, offset.saturating_add(super::MAGIC.len() as u64)),
        machine: None,
        capabilities: Capabilities::default(),
        ram: Ram::default(),
        ram_section: None,
    };
    let whole = match walk.sections() {
        Ok(()) => true,
        Err(FormatError::Truncated { what, missing }) if input.options.allow_truncated && !walk.ram.blocks.is_empty() => {
            tracing::warn!(what, missing, "the image is cut short");
            false
        }
        Err(error) => return Err(error),
    };
    walk.ram.finish();
    if walk.ram.blocks.is_empty() {
        return Err(FormatError::NoMemory);
    }
    Ok(Stream {
        machine: walk.machine,
        mapped_ram: walk.capabilities.mapped_ram,
        ram: walk.ram,
        devices_at: walk.cursor.at(),
        whole,
    })
}

struct Walk<'a> {
    cursor: Cursor<'a>,
    machine: Option<String>,
    capabilities: Capabilities,
    ram: Ram,
    /// The number by which the section's parts are known.
    ram_section: Option<u32>,
}

impl Walk<'_> {
    /// Sections until the one that ends memory.
    fn sections(&mut self) -> Result<(), FormatError> {
        loop {
            let offset = self.cursor.at();
            let malformed = |what: String| FormatError::Malformed { offset, what };
            match self.cursor.byte("a section of the stream, before the end of the memory")? {
                kind::CONFIGURATION => self.configuration()?,
                kind::COMMAND => {
                    let _command = self.cursor.half("a command")?;
                    let len = self.cursor.half("a command")?;
                    self.cursor.skip(u64::from(len));
                }
                kind::START => {
                    let id = self.cursor.word("the header of a section")?;
                    let name = self.cursor.name("the header of a section")?;
                    let _instance = self.cursor.word("the header of a section")?;
                    let version = self.cursor.word("the header of a section")?;
                    if name != "ram" {
                        let advice = "migrate without block migration, dirty bitmaps and passed-through devices";
                        return Err(malformed(format!(
                            "the section `{name}` comes with the memory, and is not read here: {advice}"
                        )));
                    }
                    // Version 3 had no list of blocks; QEMU left it behind in 2009.
                    if version != 4 {
                        return Err(malformed(format!("memory in version {version} of its section, where 4 is known")));
                    }
                    self.ram_section = Some(id);
                    self.memory(id)?;
                }
                kind @ (kind::PART | kind::END) => {
                    let id = self.cursor.word("the header of a section")?;
                    if self.ram_section != Some(id) {
                        return Err(malformed(format!("a part of section {id}, which was not started")));
                    }
                    self.memory(id)?;
                    if kind == kind::END {
                        return Ok(());
                    }
                }
                kind::FULL => {
                    let _id = self.cursor.word("the header of a section")?;
                    let name = self.cursor.name("the header of a section")?;
                    return Err(malformed(format!("the state of `{name}` comes before the memory's end: this is not read here")));
                }
                kind::END_OF_FILE => return Err(malformed("the stream ends without the end of the memory".to_owned())),
                other => return Err(malformed(format!("a section of the unknown kind {other}"))),
            }
        }
    }

    /// One part of the memory, and the footer behind it, which machines older than 2.4 do not send.
    fn memory(&mut self, id: u32) -> Result<(), FormatError> {
        self.ram.read_part(&mut self.cursor, &self.capabilities)?;
        let offset = self.cursor.at();
        if self.cursor.left() > 0 && self.cursor.peek_byte("a section")? == kind::FOOTER {
            self.cursor.skip(1);
            let of = self.cursor.word("the footer of a section")?;
            if of != id {
                return Err(FormatError::Malformed { offset, what: format!("the footer of section {of} behind section {id}") });
            }
        }
        Ok(())
    }

    /// Length and name of the machine type; then what the machine must have in common with its destination.
    fn configuration(&mut self) -> Result<(), FormatError> {
        const LONGEST: u32 = 1024;
        const MOST: u32 = 1024;
        let offset = self.cursor.at();
        let malformed = |what: String| FormatError::Malformed { offset, what };
        let len = self.cursor.word("the machine type")?;
        if len > LONGEST {
            return Err(malformed(format!("a machine type of {len} bytes")));
        }
        self.machine = Some(self.cursor.text(u64::from(len), "the machine type")?);
        while self.cursor.peek_byte("the configuration")? == kind::SUBSECTION {
            self.cursor.skip(1);
            let name = self.cursor.name("the configuration")?;
            let _version = self.cursor.word("the configuration")?;
            match name.as_str() {
                "configuration/target-page-bits" => {
                    let bits = self.cursor.word("the configuration")?;
                    if bits != super::page_runs::PAGE_BITS {
                        return Err(malformed(format!("pages of 2^{bits} bytes: this is no machine of the x86 family")));
                    }
                }
                "configuration/capabilities" => {
                    let count = self.cursor.word("the capabilities")?;
                    if count > MOST {
                        return Err(malformed(format!("{count} capabilities")));
                    }
                    for _ in 0..count {
                        match self.cursor.name("the capabilities")?.as_str() {
                            "x-ignore-shared" => self.capabilities.ignore_shared = true,
                            "mapped-ram" => self.capabilities.mapped_ram = true,
                            other => tracing::debug!(capability = other, "not known to change the stream"),
                        }
                    }
                }
                "configuration/uuid" => self.cursor.skip(16),
                other => return Err(malformed(format!("the unknown configuration `{other}`"))),
            }
        }
        Ok(())
    }
}
