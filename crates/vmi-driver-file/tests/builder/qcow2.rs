//! Disk images with snapshots, from QEMU's docs/interop/qcow2.txt: big-endian, made of clusters.
#![allow(dead_code, unreachable_pub)]

/// A disk image under construction.
#[derive(Clone)]
pub struct Disk {
    pub version: u32,
    pub cluster_bits: u32,
    /// Features that a reader must know; bit 4 is that of subclusters.
    pub features: u64,
    pub encryption: u32,
    /// Of the disk, of which nothing is there.
    pub size: u64,
    pub snapshots: Vec<Snapshot>,
    /// Whether all tables are before what they lead to; else behind.
    pub tables_first: bool,
}

#[derive(Clone)]
pub struct Snapshot {
    pub id: &'static str,
    pub name: &'static str,
    pub seconds: u32,
    /// Of the disk then, if it was another one; told by version 3 only.
    pub disk_size: Option<u64>,
    pub state: Vec<u8>,
    /// Said of the state instead of its length.
    pub state_size: Option<u64>,
}

impl Snapshot {
    pub fn new(id: &'static str, name: &'static str, seconds: u32, state: Vec<u8>) -> Self {
        Self { id, name, seconds, disk_size: None, state, state_size: None }
    }
}

/// A disk image, and where the tables of its snapshots are.
pub struct Built {
    pub bytes: Vec<u8>,
    /// Of each snapshot: the entry of the first level that leads to the state, and the first table of the second level.
    pub tables: Vec<(usize, usize)>,
}

impl Disk {
    pub fn new(snapshots: Vec<Snapshot>) -> Self {
        Self { version: 3, cluster_bits: 16, features: 0, encryption: 0, size: 700 << 20, snapshots, tables_first: false }
    }

    fn extended(&self) -> bool {
        self.features & 1 << 4 != 0
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.build().bytes
    }

    pub fn build(&self) -> Built {
        let cluster = 1usize << self.cluster_bits;
        let mut out = vec![0; cluster];
        let table_len = self.snapshots.iter().map(|snapshot| self.entry(snapshot, 0, 0).len()).sum::<usize>();
        let mut snapshots_at = out.len();
        if self.tables_first {
            out.resize((snapshots_at + table_len).next_multiple_of(cluster), 0);
        }
        let (mut table, mut tables) = (Vec::new(), Vec::new());
        for snapshot in &self.snapshots {
            let Tables { l1_at, l1, first, second } = self.write(&mut out, snapshot);
            tables.push((l1_at + first * 8, second));
            table.extend(self.entry(snapshot, l1_at, l1));
        }
        if self.tables_first {
            out[snapshots_at..snapshots_at + table_len].copy_from_slice(&table);
        } else {
            snapshots_at = out.len();
            out.extend(table);
        }
        let mut header = b"QFI\xfb".to_vec();
        header.extend(self.version.to_be_bytes());
        header.extend([0; 12]);
        header.extend(self.cluster_bits.to_be_bytes());
        header.extend(self.size.to_be_bytes());
        header.extend(self.encryption.to_be_bytes());
        header.extend([0; 24]); // the tables of the disk itself, which nobody reads here
        header.extend((self.snapshots.len() as u32).to_be_bytes());
        header.extend((snapshots_at as u64).to_be_bytes());
        if self.version > 2 {
            header.extend(self.features.to_be_bytes());
            header.extend([0; 16]);
            header.extend([4u32, 104].map(u32::to_be_bytes).concat());
        }
        out[..header.len()].copy_from_slice(&header);
        Built { bytes: out, tables }
    }

    /// A snapshot's entry in the table of snapshots.
    fn entry(&self, snapshot: &Snapshot, l1_at: usize, l1: usize) -> Vec<u8> {
        let state_size = snapshot.state_size.unwrap_or(snapshot.state.len() as u64);
        let extra = if self.version == 2 { 0 } else { 24u32 };
        let mut entry = (l1_at as u64).to_be_bytes().to_vec();
        entry.extend((l1 as u32).to_be_bytes());
        entry.extend((snapshot.id.len() as u16).to_be_bytes());
        entry.extend((snapshot.name.len() as u16).to_be_bytes());
        entry.extend(snapshot.seconds.to_be_bytes());
        entry.extend([0; 12]);
        entry.extend(if extra == 0 { state_size as u32 } else { 0 }.to_be_bytes());
        entry.extend(extra.to_be_bytes());
        if extra != 0 {
            entry.extend(state_size.to_be_bytes());
            entry.extend(snapshot.disk_size.unwrap_or(self.size).to_be_bytes());
            entry.extend([0xff; 8]);
        }
        entry.extend(snapshot.id.as_bytes());
        entry.extend(snapshot.name.as_bytes());
        entry.resize(entry.len().next_multiple_of(8), 0);
        entry
    }

    /// Adds the clusters and tables of a snapshot.
    fn write(&self, out: &mut Vec<u8>, snapshot: &Snapshot) -> Tables {
        let cluster = 1usize << self.cluster_bits;
        let size = if self.extended() { 16 } else { 8 };
        let per_table = cluster / size;
        let first = (snapshot.disk_size.unwrap_or(self.size) as usize).div_ceil(cluster * per_table);
        let count = snapshot.state.len().div_ceil(cluster);
        let seconds = count.div_ceil(per_table);
        let l1 = first + seconds;
        let (data_len, tables_len) = (count * cluster, seconds * cluster + (l1 * 8).next_multiple_of(cluster));
        let base = out.len();
        let (data_at, second) = if self.tables_first { (base + tables_len, base) } else { (base, base + data_len) };
        let l1_at = second + seconds * cluster;
        out.resize(base + data_len + tables_len, 0);
        out[data_at..data_at + data_len].fill(0xcc);
        // Not in the order of the state: with a step that is coprime to their number.
        let step = [7, 5, 3].into_iter().find(|step| !count.is_multiple_of(*step)).unwrap_or(1);
        for (index, content) in snapshot.state.chunks(cluster).enumerate() {
            let at = data_at + index * step % count * cluster;
            let subclusters = if self.extended() { 32 } else { 1 };
            let mut bitmap = 0u64;
            for (number, part) in content.chunks(cluster / subclusters).enumerate() {
                if part.iter().any(|&byte| byte != 0) {
                    bitmap |= 1 << number;
                    out[at + number * cluster / subclusters..][..part.len()].copy_from_slice(part);
                } else if (index + number) % 2 == 0 {
                    bitmap |= 1 << (number + 32);
                }
            }
            let entry = match bitmap {
                _ if self.extended() => [1 << 63 | at as u64, bitmap].map(u64::to_be_bytes).concat(),
                // What is zero is not there, or there and said to be zero.
                1 => (1 << 63 | at as u64).to_be_bytes().to_vec(),
                0 => vec![0; 8],
                _ if self.version == 2 => vec![0; 8],
                _ => (1 << 63 | at as u64 | 1).to_be_bytes().to_vec(),
            };
            out[second + index * size..][..size].copy_from_slice(&entry);
        }
        for number in 0..seconds {
            let table = (1 << 63 | (second + number * cluster) as u64).to_be_bytes();
            out[l1_at + (first + number) * 8..][..8].copy_from_slice(&table);
        }
        Tables { l1_at, l1, first, second }
    }
}

/// Where the tables of a snapshot are.
struct Tables {
    l1_at: usize,
    /// How many entries the first level has.
    l1: usize,
    /// Which of them is the state's first.
    first: usize,
    /// Where the table is to which that leads; those of the next ones follow.
    second: usize,
}
