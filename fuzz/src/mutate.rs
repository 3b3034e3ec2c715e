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
        match self.next() % 10 {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << (self.next() % 8),
            1 if !bytes.is_empty() => bytes[at] = self.next() as u8,
            2 | 3 => {
                let number = INTERESTING[self.below(INTERESTING.len())];
                self.change_number(bytes, at, |_| number);
            }
            4 | 5 => {
                let step = (self.next() % 33).wrapping_sub(16);
                self.change_number(bytes, at, |number| number.wrapping_add(step));
            }
            6 => match self.below(4) {
                0 => bytes.truncate(at),
                _ => drop(bytes.drain(at..(at + self.below(256)).min(bytes.len()))),
            },
            7 => {
                let len = self.below(64);
                let inserted: Vec<u8> = (0..len).map(|_| self.next() as u8).collect();
                bytes.splice(at..at, inserted);
            }
            _ => {
                // A piece of this input or another, over what is here or before it.
                let other = if self.below(2) == 0 { bytes.clone() } else { inputs[self.below(inputs.len())].clone() };
                let from = self.below(other.len());
                let len = self.below(512).min(other.len() - from);
                let end = if self.below(4) == 0 { at } else { (at + len).min(bytes.len()) };
                bytes.splice(at..end, other[from..from + len].iter().copied());
            }
        }
    }

    /// Changes a number of 1, 2, 4 or 8 bytes, mostly at a multiple of its size.
    fn change_number(&mut self, bytes: &mut [u8], at: usize, change: impl Fn(u64) -> u64) {
        let size = 1usize << self.below(4);
        let at = if self.below(4) == 0 { at } else { at - at % size };
        if let Some(target) = bytes.get_mut(at..at + size) {
            let mut number = [0; 8];
            number[..size].copy_from_slice(target);
            target.copy_from_slice(&change(u64::from_le_bytes(number)).to_le_bytes()[..size]);
        }
    }
}
