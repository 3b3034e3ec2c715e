//! What a gdb stub sends.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use vmi_core::{PhysAddr, VcpuId, VirtAddr};
use vmi_driver_kvm::gdb::{
    Decoder, Features, GdbCause, GdbClient, GdbOptions, GdbRead, Item, Layout, StopReply, TrapKind, encode, thread_list,
};

use super::qmp::serve;

/// A stream of packets, in pieces of the length of the first byte. What is in a packet survives being sent again.
pub fn packets(data: &[u8]) -> bool {
    let Some((step, stream)) = data.split_first() else { return false };
    let mut decoder = Decoder::default();
    let mut any = false;
    for piece in stream.chunks(usize::from(*step).max(1)) {
        decoder.push(piece);
        while let Ok(Some(item)) = decoder.next_item() {
            if let Item::Packet(payload) | Item::Notification(payload) = item {
                any = true;
                let mut again = Vec::new();
                encode(&payload, &mut again);
                let mut decoder = Decoder::default();
                decoder.push(&again);
                assert_eq!(decoder.next_item().ok().flatten(), Some(Item::Packet(payload)));
            }
        }
    }
    any
}

/// Answers that have a grammar of their own.
pub fn replies(data: &[u8]) -> bool {
    let features = Features::parse(data);
    assert!((400..=1 << 20).contains(&features.packet_size));
    let stop = StopReply::parse(data);
    assert!(stop.is_none() || StopReply::is(data));
    stop.is_some() || thread_list(data).is_ok() || data.starts_with(b"PacketSize=")
}

/// A target description in several documents, parted by zero bytes; the first is the target's, the others are named by one letter each. The last
/// part is an answer to `g`.
pub fn description(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let parts: Vec<&str> = text.split('\0').collect();
    let Some((answer, documents)) = parts.split_last() else { return false };
    let layout = Layout::read(&mut |name| {
        let index = match name.as_bytes() {
            b"target.xml" => 0,
            [letter] => usize::from(letter.wrapping_sub(b'a')) + 1,
            _ => usize::MAX,
        };
        documents.get(index).map(|document| (*document).to_owned()).ok_or(GdbCause::Unsupported)
    });
    let Ok(layout) = layout else { return false };
    for name in ["rip", "eip", "rax", "cr3", "st0"] {
        if let Some(place) = layout.place(name) {
            assert!(place.offset + place.len <= layout.byte_len());
            layout.value(name, answer.as_bytes());
        }
    }
    true
}

/// A whole session with a stub that says what the input says, whatever it is asked. Accepted if the client takes it for a stub.
pub fn session(data: &[u8]) -> bool {
    let (ours, theirs) = UnixStream::pair().expect("two sockets");
    std::thread::scope(|scope| {
        scope.spawn(|| serve(theirs, data));
        // Nothing is waited for: who has said all hangs up.
        let patience = Duration::from_secs(2);
        let options = GdbOptions::default().connect(patience).reply(patience).farewell(patience);
        let Ok(mut client) = GdbClient::over(ours, "stub", &options) else { return false };
        assert!(!client.vcpus().is_empty());
        let vcpu = VcpuId(0);
        if let Ok(mut registers) = client.registers(vcpu) {
            registers.rip ^= 1;
            let _ = client.write_registers(vcpu, &registers);
        }
        let mut buffers = [vec![0; 100], vec![0; 9000]];
        let mut reads: Vec<_> =
            buffers.iter_mut().zip([0x1000, 0xf_fff0]).map(|(buf, at)| GdbRead::new(PhysAddr::new(at), buf)).collect();
        client.read_physical_many(&mut reads);
        let at = VirtAddr::new(0xffff_ffff_8100_0000);
        let _ = client.read_virtual(vcpu, at, &mut [0; 8]);
        let _ = client.write_physical(PhysAddr::new(0x1000), &[0; 100]);
        let _ = client.insert(TrapKind::Software, at, 1);
        let _ = client.resume();
        for _ in 0..4 {
            if !matches!(client.wait(Duration::from_millis(1)), Ok(Some(_))) {
                break;
            }
        }
        let _ = (client.interrupt(), client.step(vcpu), client.last_stop());
        let _ = client.remove(TrapKind::Software, at, 1);
        let _ = client.monitor("info registers");
        let _ = client.detach();
        true
    })
}
