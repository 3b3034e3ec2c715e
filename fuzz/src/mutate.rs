//! Mutations of corpus inputs, the same for the same seed.

/// Numbers that parsers stumble over.
const INTERESTING: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0xffff_8000_0000_0000,
    0x000f_ffff_ffff_f000,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Inputs do not grow beyond this.
const LONGEST: usize = 4 << 20;

pub struct Mutator {
    state: u64,
}

impl Mutator {
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// Xorshift64.
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { (self.next() % limit as u64) as usize }
    }

    /// One of `inputs`, changed in one to eight places.
    pub fn mutate(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let index = self.below(inputs.len());
        let mut bytes = inputs[index].clone();
        for _ in 0..=self.below(8) {
            self.change(&mut bytes, inputs);
        }
        bytes.truncate(LONGEST);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, inputs: &[Vec<u8>]) {
        let at = self.below(bytes.len());
        match self.next() % 8 {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << (self.next() % 8),
            1 if !bytes.is_empty() => bytes[at] = self.next() as u8,
            2 | 3 => {
                let size = [1usize, 2, 4, 8][self.below(4)];
                let number = INTERESTING[self.below(INTERESTING.len())].to_le_bytes();
                if let Some(target) = bytes.get_mut(at..at + size) {
                    target.copy_from_slice(&number[..size]);
                }
            }
            4 => bytes.truncate(at),
            5 => {
                let len = self.below(64);
                let inserted: Vec<u8> = (0..len).map(|_| self.next() as u8).collect();
                bytes.splice(at..at, inserted);
            }
            6 => {
                let end = (at + self.below(256)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                // A piece of another input, or of this one, over what is here.
                let index = self.below(inputs.len());
                let other = &inputs[index];
                let from = self.below(other.len());
                let len = self.below(512).min(other.len() - from);
                let end = (at + len).min(bytes.len());
                bytes.splice(at..end, other[from..from + len].iter().copied());
            }
        }
    }
}
