//! Which KV block belongs to whom. Owns reference counts, the prefix cache and the order in which blocks are reused.
//! Refuses to know requests, time and numerics.
//!
//! A full block is known by its tokens, its tenant and the block before it, so that sequences of one tenant with a common
//! beginning share it. The block before is named by a number that is never used twice, and the map compares tokens and
//! tenant on every hit: a collision of hashes shares nothing, by construction. Invariants: a block is used, cached and
//! unused, or empty, and exactly one of the three; a shared block is never written.

use crate::backend::BLOCK_TOKENS;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What a full block holds.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Content {
    tenant: Arc<str>,
    /// The block before it; 0 where there is none.
    parent: u64,
    tokens: [u32; BLOCK_TOKENS],
}

#[derive(Debug, Default)]
struct Block {
    users: u32,
    /// Of a full block that others may share: what it holds, and the number that its successors name it by.
    content: Option<(Arc<Content>, u64)>,
    /// Its place in the order of reuse while nobody uses it.
    released: u64,
}

/// The blocks of one sequence, first to last.
#[derive(Debug, Default)]
pub struct Table {
    blocks: Vec<u32>,
    /// So many of them may be shared by others.
    published: usize,
    /// The number of the last of those.
    parent: u64,
}

impl Table {
    /// Block `i` holds positions `i * BLOCK_TOKENS..`.
    #[must_use]
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }
}

/// The blocks of a cache.
#[derive(Debug)]
pub struct Blocks {
    blocks: Vec<Block>,
    empty: Vec<u32>,
    /// Nobody's, but with content; the one that was released first is reused first.
    idle: BTreeMap<u64, u32>,
    cached: HashMap<Arc<Content>, u32>,
    clock: u64,
}

impl Blocks {
    /// `count` blocks of [`BLOCK_TOKENS`] tokens, all empty.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self {
            blocks: (0..count).map(|_| Block::default()).collect(),
            empty: (0..count as u32).rev().collect(),
            idle: BTreeMap::new(),
            cached: HashMap::new(),
            clock: 0,
        }
    }

    /// Blocks that can be had, cached ones included.
    #[must_use]
    pub fn free(&self) -> usize {
        self.empty.len() + self.idle.len()
    }

    /// All blocks there are.
    #[must_use]
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// A table that begins with the cached blocks of `tokens`. At least one token is left to compute.
    pub fn open(&mut self, tenant: &Arc<str>, tokens: &[u32]) -> Table {
        let mut table = Table::default();
        for id in self.found(tenant, tokens) {
            let block = &mut self.blocks[id as usize];
            if block.users == 0 {
                self.idle.remove(&block.released);
            }
            block.users += 1;
            table.parent = block.content.as_ref().map_or(0, |(_, number)| *number);
            table.blocks.push(id);
        }
        table.published = table.blocks.len();
        table
    }

    /// How many of the first `tokens` are cached.
    #[must_use]
    pub fn cached_tokens(&self, tenant: &Arc<str>, tokens: &[u32]) -> usize {
        self.found(tenant, tokens).len() * BLOCK_TOKENS
    }

    fn found(&self, tenant: &Arc<str>, tokens: &[u32]) -> Vec<u32> {
        let (mut parent, mut found) = (0, Vec::new());
        let usable = tokens.len().saturating_sub(1) / BLOCK_TOKENS;
        for piece in tokens.as_chunks::<BLOCK_TOKENS>().0.iter().take(usable) {
            let key = Content {
                tenant: tenant.clone(),
                parent,
                tokens: *piece,
            };
            let Some(id) = self.cached.get(&key) else { break };
            let Some((_, number)) = &self.blocks[*id as usize].content else {
                break;
            };
            parent = *number;
            found.push(*id);
        }
        found
    }

    /// Makes room for `tokens` tokens in all. False: there are too few blocks; those that were there stay in the table.
    pub fn grow(&mut self, table: &mut Table, tokens: usize) -> bool {
        while table.blocks.len() < tokens.div_ceil(BLOCK_TOKENS) {
            let Some(id) = self.take() else { return false };
            table.blocks.push(id);
        }
        true
    }

    /// A block for one user, forgetting what was in it.
    fn take(&mut self) -> Option<u32> {
        let id = match self.empty.pop() {
            Some(id) => id,
            None => self.idle.pop_first()?.1,
        };
        let block = &mut self.blocks[id as usize];
        if let Some((content, _)) = block.content.take() {
            self.cached.remove(&content);
        }
        block.users = 1;
        Some(id)
    }

    /// The first `computed` of a sequence's `tokens` are in its blocks: full ones may be shared from now on.
    pub fn publish(&mut self, table: &mut Table, tenant: &Arc<str>, tokens: &[u32], computed: usize) {
        let full = tokens[..computed].as_chunks::<BLOCK_TOKENS>().0;
        for piece in full.iter().skip(table.published) {
            let content = Content {
                tenant: tenant.clone(),
                parent: table.parent,
                tokens: *piece,
            };
            let twin = self.cached.get(&content).map(|id| &self.blocks[*id as usize]);
            table.parent = match twin.and_then(|twin| twin.content.as_ref()) {
                // Another sequence computed the same at the same time: its block is the known one.
                Some((_, number)) => *number,
                None => {
                    self.clock += 1;
                    let (id, content) = (table.blocks[table.published], Arc::new(content));
                    self.blocks[id as usize].content = Some((content.clone(), self.clock));
                    self.cached.insert(content, id);
                    self.clock
                }
            };
            table.published += 1;
        }
    }

    /// Gives a sequence's blocks back; the last first, since a beginning is of more use than an end.
    pub fn release(&mut self, table: Table) {
        for id in table.blocks.into_iter().rev() {
            let block = &mut self.blocks[id as usize];
            block.users -= 1;
            if block.users > 0 {
                continue;
            }
            if block.content.is_none() {
                self.empty.push(id);
            } else {
                self.clock += 1;
                block.released = self.clock;
                self.idle.insert(self.clock, id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(tenant: &str) -> Arc<str> {
        tenant.into()
    }

    /// A sequence that has computed all of `tokens`.
    fn computed(blocks: &mut Blocks, tenant: &str, tokens: &[u32]) -> Table {
        let mut table = blocks.open(&name(tenant), tokens);
        assert!(blocks.grow(&mut table, tokens.len()));
        blocks.publish(&mut table, &name(tenant), tokens, tokens.len());
        table
    }

    #[test]
    fn a_common_beginning_is_shared_and_an_end_is_not() {
        let mut blocks = Blocks::new(8);
        let tokens: Vec<u32> = (0..40).collect();
        let mine = computed(&mut blocks, "a", &tokens);
        assert_eq!(blocks.open(&name("a"), &tokens).blocks(), &mine.blocks()[..2]);
        let mut other = tokens.clone();
        other[20] = 99;
        assert_eq!(blocks.open(&name("a"), &other).blocks(), &mine.blocks()[..1]);
        // Exactly two blocks: the last token must still be computed.
        assert_eq!(
            blocks.open(&name("a"), &tokens[..32]).blocks(),
            &mine.blocks()[..1]
        );
    }

    #[test]
    fn another_tenant_sees_nothing_of_it() {
        let mut blocks = Blocks::new(8);
        let tokens: Vec<u32> = (0..40).collect();
        let mine = computed(&mut blocks, "a", &tokens);
        assert_eq!(blocks.cached_tokens(&name("b"), &tokens), 0);
        let other = computed(&mut blocks, "b", &tokens);
        assert!(other.blocks().iter().all(|block| !mine.blocks().contains(block)));
        assert_eq!(blocks.cached_tokens(&name("b"), &tokens), 32);
    }

    #[test]
    fn the_same_block_after_another_beginning_is_another_block() {
        let mut blocks = Blocks::new(8);
        let tokens: Vec<u32> = (0..33).collect();
        computed(&mut blocks, "a", &tokens);
        let moved: Vec<u32> = (100..116).chain(16..33).collect();
        assert_eq!(blocks.cached_tokens(&name("a"), &moved), 0);
    }

    #[test]
    fn blocks_come_back_and_keep_their_content_until_taken() {
        let mut blocks = Blocks::new(2);
        let tokens: Vec<u32> = (0..17).collect();
        let mine = computed(&mut blocks, "a", &tokens);
        assert_eq!(blocks.free(), 0);
        blocks.release(mine);
        assert_eq!(blocks.free(), 2);
        let again = blocks.open(&name("a"), &tokens);
        assert_eq!((again.blocks().len(), blocks.free()), (1, 1));
        blocks.release(again);
        let mut all = Table::default();
        assert!(blocks.grow(&mut all, 32) && !blocks.grow(&mut all, 33));
        assert_eq!(blocks.cached_tokens(&name("a"), &tokens), 0);
    }

    #[test]
    fn what_was_used_last_is_forgotten_last_and_ends_go_before_beginnings() {
        let mut blocks = Blocks::new(4);
        let (first, second): (Vec<u32>, Vec<u32>) = ((0..33).collect(), (100..117).collect());
        let one = computed(&mut blocks, "a", &first[..32]);
        let two = computed(&mut blocks, "a", &second[..16]);
        blocks.release(one);
        blocks.release(two);
        let mut table = Table::default();
        assert!(blocks.grow(&mut table, 32));
        // One empty block was there; the other is the end of the first sequence.
        assert_eq!(blocks.cached_tokens(&name("a"), &first), 16);
        assert_eq!(blocks.cached_tokens(&name("a"), &second), 16);
    }

    #[test]
    fn two_that_compute_the_same_at_once_end_as_one() {
        let mut blocks = Blocks::new(8);
        let tokens: Vec<u32> = (0..40).collect();
        let (mut one, mut two) = (Table::default(), Table::default());
        assert!(blocks.grow(&mut one, 40) && blocks.grow(&mut two, 40));
        blocks.publish(&mut one, &name("a"), &tokens, 16);
        blocks.publish(&mut two, &name("a"), &tokens, 32);
        blocks.publish(&mut one, &name("a"), &tokens, 40);
        assert_eq!(blocks.cached_tokens(&name("a"), &tokens), 32);
        blocks.release(one);
        blocks.release(two);
        assert_eq!(blocks.free(), 8);
    }
}
