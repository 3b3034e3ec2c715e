//! What an object is called, by its type: paths of files and registry keys, processes and threads by their ids.

use vmi_arch_x86::X86Driver;
use vmi_core::{ErrorKind, Result, VirtAddr};

use crate::registry::bytes::utf16;
use crate::{Object, Windows};

/// The registry allows 512 levels of keys ("Registry element size limits" in Microsoft's documentation); some more are the root's.
const MAX_LEVELS: usize = 520;
/// Bytes of the name of a key: 255 characters of UTF-16 (as before).
const MAX_KEY_NAME: u16 = 512;

impl<D: X86Driver> Object<'_, '_, D> {
    /// What it is called, by its type: the path of a file with its device, the full path of a registry key, name and id of a process, ids of a thread;
    /// of other types the path in the object directory. `None` if it has no name.
    ///
    /// # Errors
    /// As [`Object::type_name`] and [`Object::path`]; [`ErrorKind::NoType`] if the guest's types do not describe what the type consists of.
    pub fn full_name(&self) -> Result<Option<String>> {
        let windows = self.windows;
        match self.type_name()?.as_str() {
            "File" => windows.file_name(self.address()),
            "Key" => windows.key_name(self.address()).map(Some),
            "Process" => {
                let process = windows.process_at(self.address());
                Ok(Some(format!("{} ({})", process.name()?, process.pid()?)))
            }
            "Thread" => {
                let thread = windows.thread_at(self.address());
                Ok(Some(format!("thread {} of process {}", thread.tid()?, thread.pid()?)))
            }
            _ => self.path(),
        }
    }
}

impl<D: X86Driver> Windows<'_, D> {
    /// The path of the `_FILE_OBJECT` at `file`: `\Device\HarddiskVolume2\Windows\notepad.exe`. `None` if neither the file nor its device has a name.
    ///
    /// # Errors
    /// As [`Memory::read_into`](vmi_core::Memory::read_into); [`ErrorKind::NoType`] if the guest's types do not have a member.
    pub fn file_name(&self, file: VirtAddr) -> Result<Option<String>> {
        let layout = &self.objects.layout.file;
        let name = self.string(layout.name.of(file)?)?;
        let device = match self.pointer_or_null(file, layout.device)? {
            Some(device) => self.object_at(device).path()?.unwrap_or_default(),
            None => String::new(),
        };
        Ok(Some(device + &name).filter(|path| !path.is_empty()))
    }

    /// The full path of the open key whose `_CM_KEY_BODY` is at `body`: `\REGISTRY\MACHINE\SYSTEM\...`. The kernel may keep parts of it in capitals.
    ///
    /// # Errors
    /// As [`Windows::file_name`]; [`ErrorKind::Limit`] if keys lead on without an end.
    pub fn key_name(&self, body: VirtAddr) -> Result<String> {
        let layout = &self.objects.layout;
        // `_CM_KEY_BODY` has begun with a tag and the pointer to the control block in all releases.
        let control_block = layout.key_body.control_block.offset().unwrap_or(self.pointer_size());
        let mut block = self.pointer_at(body.wrapping_add(control_block))?;
        let mut names = Vec::new();
        while !block.is_null() {
            if names.len() >= MAX_LEVELS {
                return Err(ErrorKind::Limit { what: format!("the path of the key at {body}"), limit: MAX_LEVELS }.into());
            }
            let name = self.pointer(block, layout.control_block.name)?;
            names.push(self.name_block(name)?);
            block = self.pointer(block, layout.control_block.parent)?;
        }
        Ok(names.iter().rev().flat_map(|name| ["\\", name]).collect())
    }

    /// The name in a `_CM_NAME_CONTROL_BLOCK`: compressed ones have a byte for each character.
    fn name_block(&self, at: VirtAddr) -> Result<String> {
        let layout = &self.objects.layout.name_block;
        let compressed = layout.compressed.bits(self.read(at, layout.compressed)?) & 1 != 0;
        let len: u16 = self.read(at, layout.len)?;
        if len > MAX_KEY_NAME {
            return Err(vmi_core::Error::corrupt(format!("a key with a name of {len} bytes"), at));
        }
        let bytes = self.bytes_at(layout.name.of(at)?, usize::from(len))?;
        Ok(if compressed { bytes.iter().map(|&byte| char::from(byte)).collect() } else { utf16(&bytes) })
    }
}
