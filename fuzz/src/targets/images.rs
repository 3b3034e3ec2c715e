//! Image files.

use vmi_core::{Driver, ErrorKind, Memory, PhysAddr, VcpuId, Vmi};
use vmi_driver_file::{ImageDriver, OpenOptions, RawMap};

/// A file of these bytes.
pub fn open(data: &[u8]) -> bool {
    let open = |truncated| {
        let options = OpenOptions::new().allow_truncated(truncated).max_unpacked(64 << 20);
        options.open_bytes("image", data.to_vec()).map(read).is_ok()
    };
    let whole = open(false);
    assert!(open(true) || !whole);
    whole
}

/// One line with a map, then a raw image.
pub fn raw(data: &[u8]) -> bool {
    let end = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    let (line, image) = data.split_at(end);
    let Some(map) = std::str::from_utf8(line).ok().and_then(|line| line.parse::<RawMap>().ok()) else { return false };
    let open = |truncated| {
        let options = OpenOptions::new().allow_truncated(truncated).raw_map(map.clone());
        options.open_bytes("image", image.get(1..).unwrap_or_default().to_vec()).map(read).is_ok()
    };
    let whole = open(false);
    assert!(open(true) || !whole);
    whole
}

/// All that the memory map promises can be asked for.
pub(super) fn read(driver: ImageDriver) {
    let vmi = Vmi::new(driver);
    if let Some(vcpus) = vmi.driver().vcpus() {
        for vcpu in 0..vcpus.vcpu_count() {
            vcpus.registers(VcpuId(vcpu)).expect("every vCPU has registers");
        }
    }
    let mut buf = [0; 4096];
    for region in vmi.machine().memory.regions().iter().take(100) {
        let first = buf.len().min(usize::try_from(region.len()).unwrap_or(usize::MAX));
        expect(&vmi, region.start(), &mut buf[..first]);
        let last = region.end().wrapping_sub(1);
        expect(&vmi, last, &mut buf[..1]);
        let _ = vmi.read_lossy(last, &mut buf);
    }
}

/// Reads what the memory map promises. Memory that is packed may turn out to be damaged, but is there.
fn expect(vmi: &Vmi<ImageDriver>, at: PhysAddr, buf: &mut [u8]) {
    match vmi.read_into(at, buf) {
        Err(error) if vmi.driver().mapping().is_none() && matches!(error.kind(), ErrorKind::Driver { .. }) => {}
        other => other.expect("what the memory map promises"),
    }
}
