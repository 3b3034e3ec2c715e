//! Circular lists of a running guest, which changes them while they are walked.
//!
//! The kernel lets its own readers walk such lists without a lock (RCU, include/linux/rculist.h): a node that is taken out still leads
//! on until all readers have left. A reader outside of the guest is not waited for. What it stands on may be freed and become
//! another node meanwhile, which leads to another part of the list, past nodes that it never saw. So each step is proven by one moment,
//! the one at which the next node was seen to lead back here. What proves that both were then the nodes that they are taken for is their
//! identity, read before that moment and again after it: the one of the next node within the step, the one of this node when it was
//! reached and now. A node that was taken out leads back nowhere (LIST_POISON2), one that came anew has another identity.
//!
//! What is left is a node that is not one yet, or no more: a task under construction is a copy of its parent at first, links and identity
//! included. So a step to an identity that the list has already must succeed twice. (A list that really has one twice, say one that a
//! rootkit changed, is shown as it is.)
//!
//! Where that does not hold, the walk goes back by one node, which proves itself anew or makes it go back further. Nodes that were there all
//! the time are found exactly once so: each proven step goes from one node to its successor, and the order of nodes that stay never
//! changes.

use std::collections::BTreeSet;

use super::Node;
use crate::live::Attempts;
use crate::{AddressSpace, Driver, Error, ErrorKind, Paging, Result, VirtAddr};

/// The nodes of the list at `head`. Those that were in it all the time are there exactly once; those that came or went meanwhile
/// may be.
///
/// # Errors
/// [`ErrorKind::Changing`] if no step succeeds any more, [`ErrorKind::Limit`] for more than `limit` nodes, else as reading memory.
pub(super) fn collect<D: Driver>(
    space: &AddressSpace<'_, D>,
    head: VirtAddr,
    what: &'static str,
    limit: usize,
    identity: impl Fn(VirtAddr) -> Result<u32>,
) -> Result<Vec<Node>> {
    let walk = Walk { space, head, what, identity };
    let mut nodes: Vec<Node> = Vec::new();
    let mut identities = BTreeSet::new();
    let mut furthest = 0;
    let mut attempts = Attempts::new(what);
    loop {
        let all = |identity| (identity, VirtAddr::ZERO)..=(identity, VirtAddr::new(u64::MAX));
        let seen = |node: &Node| identities.range(all(node.identity)).next().is_some();
        let step = match walk.step(nodes.last()) {
            Ok(Some(node)) if seen(&node) => walk.step(nodes.last()).and_then(|again| {
                let same = again.as_ref() == Some(&node);
                same.then_some(again).ok_or_else(|| Error::corrupt(format!("a node of {what} went away"), node.at))
            }),
            step => step,
        };
        match step {
            Ok(None) => return Ok(nodes),
            Ok(Some(_)) if nodes.len() == limit => return Err(ErrorKind::Limit { what: what.to_owned(), limit }.into()),
            Ok(Some(node)) => {
                identities.insert((node.identity, node.at));
                nodes.push(node);
                if nodes.len() > furthest {
                    furthest = nodes.len();
                    attempts.progress();
                }
            }
            Err(error) => {
                attempts.failed(error)?;
                if let Some(node) = nodes.pop() {
                    identities.remove(&(node.identity, node.at));
                }
            }
        }
    }
}

struct Walk<'a, 'v, D: Driver, I> {
    space: &'a AddressSpace<'v, D>,
    head: VirtAddr,
    what: &'static str,
    identity: I,
}

impl<D: Driver, I: Fn(VirtAddr) -> Result<u32>> Walk<'_, '_, D, I> {
    /// The node behind `last`, or behind the head; `None` at the end.
    fn step(&self, last: Option<&Node>) -> Result<Option<Node>> {
        let here = last.map_or(self.head, |last| last.at);
        let at = self.next(here)?;
        let node = if at == self.head { None } else { Some(Node { at, identity: Some((self.identity)(at)?) }) };
        let back = self.space.read_pointer(at.wrapping_add(self.space.mode().pointer_size() as u64))?;
        if back != here {
            return Err(Error::corrupt(format!("{} leads from {here} to a node that leads back to {back}", self.what), at));
        }
        if self.next(here)? != at {
            return Err(Error::corrupt(format!("a node of {} went away", self.what), here));
        }
        for node in last.into_iter().chain(&node) {
            if Some((self.identity)(node.at)?) != node.identity {
                return Err(Error::corrupt(format!("a node of {} went away", self.what), node.at));
            }
        }
        Ok(node)
    }

    fn next(&self, node: VirtAddr) -> Result<VirtAddr> {
        self.space.read_pointer(node)
    }
}

/// Whether the node at `node` is in its list: the node behind it leads back to it, or the node before it leads on to it. Only a running guest can
/// tell no.
///
/// A node that was taken out has neither: the neighbours that it still names lead past it. Both are asked, since one of them may go away
/// meanwhile.
pub fn holds<D: Driver>(space: &AddressSpace<'_, D>, node: VirtAddr) -> bool {
    /// Both neighbours may be about to change.
    const TRIES: usize = 8;
    let back = |node: VirtAddr| node.wrapping_add(space.mode().pointer_size() as u64);
    let leads_back = || Ok::<_, Error>(space.read_pointer(back(space.read_pointer(node)?))? == node);
    let leads_on = || Ok::<_, Error>(space.read_pointer(space.read_pointer(back(node))?)? == node);
    !crate::live::runs(space.vmi()) || (0..TRIES).any(|_| leads_back().unwrap_or(false) || leads_on().unwrap_or(false))
}
