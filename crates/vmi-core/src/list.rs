//! Circular doubly linked lists, as kernels build them: each node is a pointer to the next one and, behind it, a pointer to the one before.
//!
//! Linux calls a node `struct list_head` (include/linux/types.h), Windows `LIST_ENTRY`.

use core::fmt;
use core::iter::FusedIterator;

use crate::live::{self, Still};
use crate::{AddressSpace, Driver, Error, ErrorKind, Paging, Result, VirtAddr};

mod running;

pub use running::holds;

/// A node of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where the node is: the pointer to the next one.
    pub at: VirtAddr,
    /// In a running guest, what tells its object from a later one at the same place; `None` where memory holds still.
    pub identity: Option<u32>,
}

/// The nodes of a list, without its head: one by one where memory holds still ([`List`]), all at once in a running guest, by steps
/// of which each is proven.
///
/// `identity` reads what tells the object of a node from others that may come to lie at the same place.
pub fn nodes<'a, 'v, D: Driver>(
    space: &'a AddressSpace<'v, D>,
    head: VirtAddr,
    what: &'static str,
    limit: usize,
    identity: impl Fn(VirtAddr) -> Result<u32>,
) -> Nodes<'a, 'v, D> {
    if !live::runs(space.vmi()) {
        return Nodes(Source::Frozen(Still::new(space.vmi(), what, List::new(space, head, what, limit))));
    }
    Nodes(match running::collect(space, head, what, limit, identity) {
        Ok(nodes) => Source::Running(nodes.into_iter()),
        Err(error) => Source::Failed(Some(error)),
    })
}

/// The nodes of a list; see [`nodes`].
#[derive(Debug)]
pub struct Nodes<'a, 'v, D: Driver>(Source<'a, 'v, D>);

#[derive(Debug)]
enum Source<'a, 'v, D: Driver> {
    Frozen(Still<'v, D, List<'a, 'v, D>>),
    Running(std::vec::IntoIter<Node>),
    Failed(Option<Error>),
}

impl<D: Driver> Iterator for Nodes<'_, '_, D> {
    type Item = Result<Node>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Source::Frozen(list) => Some(list.next()?.map(|at| Node { at, identity: None })),
            Source::Running(nodes) => nodes.next().map(Ok),
            Source::Failed(error) => error.take().map(Err),
        }
    }
}

impl<D: Driver> FusedIterator for Nodes<'_, '_, D> {}

/// A walk over the nodes of a circular list, without its head, in memory that holds still.
///
/// A list that does not lead back to its head gives an error: where memory ends, after `limit` nodes, or when it runs in a circle
/// that leaves out the head. The circle is found by Brent's algorithm ("An improved Monte Carlo factorization algorithm", 1980), which
/// costs one comparison a node; nodes of the circle can come up to three times before the error.
///
/// Behind an error that a node could not be read (its page is paged out, or was left out of the image) come those that the head's other end
/// leads to, last one first. Nothing else follows an error.
///
/// Else only the forward pointers count: those backward are stale for a moment in every kernel that adds or removes a node.
pub struct List<'a, 'v, D: Driver> {
    space: &'a AddressSpace<'v, D>,
    /// What is listed, for errors: `the task list`.
    what: &'static str,
    limit: usize,
    head: VirtAddr,
    here: VirtAddr,
    count: usize,
    /// A node passed before: the one whose number is the last power of two.
    landmark: VirtAddr,
    /// Where the walk from the other end is, since that from the head met a node that cannot be read.
    back: Option<VirtAddr>,
    ended: bool,
}

impl<'a, 'v, D: Driver> List<'a, 'v, D> {
    /// A walk from `head`, whose nodes are counted in errors as those of `what`.
    pub fn new(space: &'a AddressSpace<'v, D>, head: VirtAddr, what: &'static str, limit: usize) -> Self {
        Self { space, what, limit, head, here: head, count: 0, landmark: head, back: None, ended: false }
    }

    /// The node behind `here`, or `None` at the end.
    #[inline]
    fn step(&mut self) -> Result<Option<VirtAddr>> {
        let node = self.space.read_pointer(self.here).inspect_err(|_| self.back = Some(self.head))?;
        if node == self.head {
            return Ok(None);
        }
        if node == self.landmark {
            return Err(Error::corrupt(format!("{} runs in a circle that leaves out its head", self.what), node));
        }
        if self.count == self.limit {
            return Err(ErrorKind::Limit { what: self.what.to_owned(), limit: self.limit }.into());
        }
        self.count = self.count.wrapping_add(1);
        if self.count.is_power_of_two() {
            self.landmark = node;
        }
        self.here = node;
        Ok(Some(node))
    }

    /// The node before `behind`, if there is one that leads back to it. Each node has one behind it, so none comes twice.
    fn step_back(&mut self, behind: VirtAddr) -> Option<VirtAddr> {
        let node = self.space.read_pointer(behind.wrapping_add(self.space.mode().pointer_size() as u64)).ok()?;
        let is_new = node != self.head && node != self.here && self.count < self.limit;
        if !is_new || self.space.read_pointer(node).ok()? != behind {
            return None;
        }
        self.count = self.count.wrapping_add(1);
        Some(node)
    }
}

impl<D: Driver> Iterator for List<'_, '_, D> {
    /// Where a node is.
    type Item = Result<VirtAddr>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        if let Some(behind) = self.back {
            self.back = self.step_back(behind);
            self.ended = self.back.is_none();
            return self.back.map(Ok);
        }
        let step = self.step();
        self.ended = !matches!(step, Ok(Some(_))) && self.back.is_none();
        step.transpose()
    }
}

impl<D: Driver> FusedIterator for List<'_, '_, D> {}

impl<D: Driver> fmt::Debug for List<'_, '_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("List")
            .field("what", &self.what)
            .field("head", &self.head)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

/// Rows whose start can fail already: that failure is the only row then.
pub fn rows<T, I: Iterator<Item = Result<T>>>(start: Result<I>) -> impl Iterator<Item = Result<T>> {
    let (rows, error) = match start {
        Ok(rows) => (Some(rows), None),
        Err(error) => (None, Some(Err(error))),
    };
    rows.into_iter().flatten().chain(error)
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::synthetic::{LiveDriver, SyntheticDriver, Unpaged};
    use crate::{PhysAddr, Vmi};

    /// Walks a list whose head is at 0x1000 in memory that holds these pointers. The nodes up to an error, and the error.
    fn walk(pointers: &[(u64, u64)], limit: usize) -> (Vec<u64>, Option<ErrorKind>) {
        let (nodes, error, behind) = walk_on(pointers, limit);
        assert!(behind.is_empty(), "nothing follows the end");
        (nodes, error)
    }

    /// The nodes up to an error, the error, and the nodes behind it.
    fn walk_on(pointers: &[(u64, u64)], limit: usize) -> (Vec<u64>, Option<ErrorKind>, Vec<u64>) {
        let mut bytes = vec![0; 0x1000];
        for (at, to) in pointers {
            bytes[*at as usize - 0x1000..][..8].copy_from_slice(&to.to_le_bytes());
        }
        let vmi = Vmi::new(SyntheticDriver::new([(PhysAddr::new(0x1000), bytes)]));
        let space = vmi.address_space(PhysAddr::ZERO, Unpaged);
        let mut list = List::new(&space, VirtAddr::new(0x1000), "the list", limit);
        let mut nodes = Vec::new();
        let error = loop {
            match list.next() {
                Some(Ok(node)) => nodes.push(node.get()),
                Some(Err(error)) => break Some(error),
                None => break None,
            }
        };
        let behind = list.by_ref().map(|node| node.unwrap().get()).collect();
        assert!(list.next().is_none(), "nothing follows the end");
        let kind = error.map(|error| match error.kind() {
            ErrorKind::Corrupt { what, at } => ErrorKind::Corrupt { what: what.clone(), at: *at },
            ErrorKind::Limit { what, limit } => ErrorKind::Limit { what: what.clone(), limit: *limit },
            ErrorKind::Hole { at } => ErrorKind::Hole { at: *at },
            other => panic!("{other}"),
        });
        (nodes, kind, behind)
    }

    #[test]
    fn a_whole_list() {
        assert_eq!(walk(&[(0x1000, 0x1000)], 10).0, [0u64; 0]);
        let (nodes, error) = walk(&[(0x1000, 0x1100), (0x1100, 0x1080), (0x1080, 0x1000)], 2);
        assert_eq!(nodes, [0x1100, 0x1080]);
        assert!(error.is_none(), "a list as long as the limit is whole");
    }

    /// LibVMI walks such a list for ever (its `linux_get_...` loops have no guard); vmi-rs does too.
    #[test]
    fn a_circle_without_the_head_is_an_error() {
        for first in 0..40u64 {
            for circle in 1..40u64 {
                let node = |n: u64| 0x1000 + 16 * n;
                let mut pointers: Vec<_> = (0..first + circle).map(|n| (node(n), node(n + 1))).collect();
                pointers.push((node(first + circle), node(first + 1)));
                let (nodes, error) = walk(&pointers, usize::MAX);
                assert!(matches!(error, Some(ErrorKind::Corrupt { .. })), "{first} {circle}: {error:?}");
                assert!(nodes.len() as u64 <= 3 * (first + circle) + 3, "{first} {circle}: {} nodes", nodes.len());
            }
        }
    }

    /// memflow ends its process list in silence at the first unreadable entry.
    #[test]
    fn a_list_into_a_hole_is_an_error_after_what_could_be_read() {
        let (nodes, error) = walk(&[(0x1000, 0x1100), (0x1100, 0x9000)], 10);
        assert_eq!(nodes, [0x1100, 0x9000]);
        assert!(matches!(error, Some(ErrorKind::Hole { at }) if at == PhysAddr::new(0x9000)), "{error:?}");
        let (_, error) = walk(&[(0x1000, 0x1100), (0x1100, 0)], 10);
        assert!(matches!(error, Some(ErrorKind::Hole { at }) if at == PhysAddr::ZERO), "a null pointer: {error:?}");
    }

    /// makedumpfile 1.7.2 leaves out pages of tasks of kernels that are newer than it knows.
    #[test]
    fn behind_a_hole_a_list_goes_on_from_its_other_end() {
        let hole = [
            (0x1000, 0x1100),
            (0x1100, 0x9000),
            (0x1008, 0x1300),
            (0x1300, 0x1000),
            (0x1308, 0x1200),
            (0x1200, 0x1300),
            (0x1208, 0x9000),
        ];
        let (nodes, error, behind) = walk_on(&hole, 10);
        assert_eq!((nodes, behind), (vec![0x1100, 0x9000], vec![0x1300, 0x1200]));
        assert!(matches!(error, Some(ErrorKind::Hole { .. })), "{error:?}");
        assert_eq!(walk_on(&hole, 3).2, [0x1300], "the limit counts both walks");
        let of = |last: (u64, u64)| walk_on(&[&hole[..6], &[last]].concat(), 10).2;
        assert_eq!(of((0x1208, 0xa000)), [0x1300, 0x1200], "another node that cannot be read: what is between is lost");
        assert_eq!(of((0x1208, 0x1100)), [0x1300, 0x1200], "a node that does not lead back to the one behind it");
        assert_eq!(of((0x1208, 0x1300)), [0x1300, 0x1200], "a circle");
    }

    #[test]
    fn a_list_past_its_limit_is_an_error() {
        let (nodes, error) = walk(&[(0x1000, 0x1100), (0x1100, 0x1080), (0x1080, 0x1000)], 1);
        assert_eq!(nodes, [0x1100]);
        assert!(matches!(error, Some(ErrorKind::Limit { limit: 1, .. })), "{error:?}");
    }

    /// A process that stayed was told to be gone when the one behind it was busy: only that one was asked.
    #[test]
    fn either_neighbour_tells_that_a_node_is_in_its_list() {
        let in_list = |pointers: &[(usize, u64)]| {
            let mut bytes = vec![0; 0x1000];
            for (at, to) in pointers {
                bytes[*at..][..8].copy_from_slice(&to.to_le_bytes());
            }
            let vmi = Vmi::new(LiveDriver::<Unpaged>::new(bytes, None));
            holds(&vmi.address_space(PhysAddr::ZERO, Unpaged), VirtAddr::new(0x200))
        };
        let node = [(0x200, 0x300), (0x208, 0x100)];
        let with = |neighbours: [(usize, u64); 2]| in_list(&[&node[..], &neighbours[..]].concat());
        assert!(with([(0x100, 0x200), (0x308, 0x200)]), "both");
        assert!(with([(0x100, 0x200), (0x308, 0x400)]), "the one behind is changing");
        assert!(with([(0x100, 0x400), (0x308, 0x200)]), "the one before is changing");
        assert!(!with([(0x100, 0x300), (0x308, 0x100)]), "taken out: both lead past it");
        assert!(!in_list(&[(0x200, 0x9000), (0x208, 0xdead_0000_0000_0122)]), "taken out and poisoned");
    }
}
