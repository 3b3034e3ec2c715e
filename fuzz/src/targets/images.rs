//! Image files.

use std::io::Write;

use vmi_core::{Driver, Memory, Vmi};
use vmi_driver_file::{ImageDriver, OpenOptions};

/// Opens a file of these bytes; all that its memory map promises can be asked for.
pub fn open(data: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(data).expect("a temporary file");
    for truncated in [false, true] {
        let opened = OpenOptions::new().allow_truncated(truncated).max_unpacked(64 << 20).open(file.path());
        let Ok(driver): Result<ImageDriver, _> = opened else { continue };
        let vmi = Vmi::new(driver);
        if let Some(vcpus) = vmi.driver().vcpus() {
            for vcpu in 0..vcpus.vcpu_count().min(64) {
                let _ = vcpus.registers(vmi_core::VcpuId(vcpu));
            }
        }
        let mut buf = [0; 4096];
        for region in vmi.machine().memory.regions().iter().take(100) {
            let first = buf.len().min(usize::try_from(region.len()).unwrap_or(usize::MAX));
            vmi.read_into(region.start(), &mut buf[..first]).expect("what the memory map promises");
            let last = region.end().wrapping_sub(1);
            vmi.read_into(last, &mut buf[..1]).expect("what the memory map promises");
            let _ = vmi.read_lossy(last, &mut buf);
        }
    }
}
