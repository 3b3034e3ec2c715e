//! Memory of a machine that is changed for one run and put back behind it: copying it each time would cost more than the run.

use std::sync::{Arc, Mutex, PoisonError};

use vmi_arch_x86::X86;
use vmi_core::synthetic::SyntheticDriver;
use vmi_core::{GuestMapping, PhysAddr, Piece, Region, Vmi};

/// A machine over such memory.
pub type Patched = SyntheticDriver<X86>;

/// The memory of a machine.
pub struct PatchedMemory {
    bytes: Mutex<Arc<Vec<u8>>>,
    pieces: Vec<Piece>,
}

impl PatchedMemory {
    /// Memory of these runs: their physical addresses in ascending order, and their bytes.
    pub fn new<B: AsRef<[u8]>>(runs: impl IntoIterator<Item = (u64, B)>) -> Self {
        let (mut bytes, mut pieces) = (Vec::new(), Vec::<Piece>::new());
        for (start, run) in runs {
            let (start, run) = (PhysAddr::new(start), run.as_ref());
            let region = |start, len: usize| Region::new(start, len as u64).expect("a run of memory");
            match pieces.last_mut() {
                Some(last) if last.region.end() == start => {
                    last.region = region(last.region.start(), last.region.len() as usize + run.len());
                }
                _ => pieces.push(Piece { region: region(start, run.len()), offset: bytes.len() as u64 }),
            }
            bytes.extend_from_slice(run);
        }
        Self { bytes: Mutex::new(Arc::new(bytes)), pieces }
    }

    /// Calls `look` with the machine that these patches make: where in physical memory, and what is there then. A patch that is not wholly
    /// in one run of the memory is left out.
    pub fn with<'a, T>(&self, patches: impl IntoIterator<Item = (u64, &'a [u8])>, look: impl FnOnce(&Vmi<Patched>) -> T) -> T {
        let mut shared = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = Arc::get_mut(&mut shared).expect("no machine is left over it");
        let mut undo: Vec<(usize, Vec<u8>)> = Vec::new();
        for (at, patch) in patches {
            let Some(at) = self.offset(PhysAddr::new(at), patch.len()) else { continue };
            let target = &mut bytes[at..at + patch.len()];
            undo.push((at, target.to_vec()));
            target.copy_from_slice(patch);
        }
        let mapping = GuestMapping::frozen(Arc::clone(&shared), &self.pieces).expect("disjoint runs");
        let seen = look(&Vmi::new(Patched::over(mapping)));
        let bytes = Arc::get_mut(&mut shared).expect("the machine is gone");
        for (at, old) in undo.into_iter().rev() {
            bytes[at..at + old.len()].copy_from_slice(&old);
        }
        seen
    }

    /// Where in `bytes` this range of physical memory is.
    fn offset(&self, at: PhysAddr, len: usize) -> Option<usize> {
        let piece = self.pieces.get(self.pieces.partition_point(|piece| piece.region.end() <= at))?;
        let offset = at.get().checked_sub(piece.region.start().get())?;
        (offset.checked_add(len as u64)? <= piece.region.len()).then_some((piece.offset + offset) as usize)
    }
}

#[cfg(test)]
mod tests {
    use vmi_core::Memory;

    use super::*;

    #[test]
    fn patches_are_there_for_one_run() {
        let memory = PatchedMemory::new([(0x1000, [1; 0x1000]), (0x2000, [2; 0x1000]), (0x8000, [3; 0x1000])]);
        let read = |vmi: &Vmi<Patched>, at: u64| vmi.read::<u8>(PhysAddr::new(at)).ok();
        let patches = [(0x1fff, &[7, 8][..]), (0x2000, &[9]), (0x8fff, &[9, 9]), (0x7fff, &[9]), (u64::MAX, &[9, 9])];
        let seen = memory.with(patches, |vmi| [0x1fff, 0x2000, 0x8fff, 0x7fff, 0x3000].map(|at| read(vmi, at)));
        assert_eq!(seen, [Some(7), Some(9), Some(3), None, None]);
        let seen = memory.with([], |vmi| [0x1fff, 0x2000, 0x8fff].map(|at| read(vmi, at)));
        assert_eq!(seen, [Some(1), Some(2), Some(3)]);
    }
}
