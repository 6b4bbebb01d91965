//! Which KV block belongs to whom. A full block is known by the hash of its tokens and all before them, so that
//! sequences with a common beginning share it; the tokens are compared on a hit, so that a collision shares nothing.

use crate::backend::BLOCK_TOKENS;
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

#[derive(Clone, Debug, Default)]
struct Block {
    users: u32,
    /// Of a full block that others may share.
    content: Option<(u64, Vec<u32>)>,
}

/// The blocks of a cache.
#[derive(Debug)]
pub struct Blocks {
    blocks: Vec<Block>,
    /// Nobody's, the one that was freed first in front; its content stays until it is taken.
    free: VecDeque<u32>,
    by_hash: HashMap<u64, u32>,
}

fn chain(parent: u64, tokens: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (parent, tokens).hash(&mut hasher);
    hasher.finish()
}

impl Blocks {
    pub fn new(count: usize) -> Self {
        Self {
            blocks: vec![Block::default(); count],
            free: (0..count as u32).collect(),
            by_hash: HashMap::new(),
        }
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Takes a free block, forgetting what was in it.
    pub fn take(&mut self) -> Option<u32> {
        let id = self.free.pop_front()?;
        let block = &mut self.blocks[id as usize];
        if let Some((hash, _)) = block.content.take()
            && self.by_hash.get(&hash) == Some(&id)
        {
            self.by_hash.remove(&hash);
        }
        block.users = 1;
        Some(id)
    }

    /// The cached blocks with which `tokens` begin, now used by the caller too. At least one token is left to compute.
    pub fn share(&mut self, tokens: &[u32]) -> Vec<u32> {
        let (mut parent, mut shared) = (0, Vec::new());
        let usable = tokens.len().saturating_sub(1) / BLOCK_TOKENS;
        for piece in tokens.chunks_exact(BLOCK_TOKENS).take(usable) {
            let hash = chain(parent, piece);
            let Some(&id) = self.by_hash.get(&hash) else { break };
            let block = &mut self.blocks[id as usize];
            if block.content.as_ref().is_none_or(|(_, held)| held != piece) {
                break;
            }
            if block.users == 0 {
                self.free.retain(|free| *free != id);
            }
            block.users += 1;
            shared.push(id);
            parent = hash;
        }
        shared
    }

    /// The first `computed` tokens of a sequence are in its blocks: full ones may be shared from now on.
    pub fn publish(&mut self, tokens: &[u32], blocks: &[u32], computed: usize) {
        let mut parent = 0;
        for (piece, &id) in tokens[..computed].chunks_exact(BLOCK_TOKENS).zip(blocks) {
            let hash = chain(parent, piece);
            let block = &mut self.blocks[id as usize];
            if block.content.is_none() {
                block.content = Some((hash, piece.to_vec()));
                self.by_hash.entry(hash).or_insert(id);
            }
            parent = hash;
        }
    }

    /// Gives a sequence's blocks back; the last first, since a beginning is of more use than an end.
    pub fn release(&mut self, blocks: &[u32]) {
        for &id in blocks.iter().rev() {
            let block = &mut self.blocks[id as usize];
            block.users -= 1;
            if block.users == 0 {
                self.free.push_back(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_beginning_is_shared_and_an_end_is_not() {
        let mut blocks = Blocks::new(8);
        let tokens: Vec<u32> = (0..40).collect();
        let mine: Vec<u32> = (0..3).map(|_| blocks.take().unwrap()).collect();
        blocks.publish(&tokens, &mine, 40);
        assert_eq!(blocks.share(&tokens), mine[..2]);
        let mut other = tokens.clone();
        other[20] = 99;
        assert_eq!(blocks.share(&other), mine[..1]);
        // Exactly two blocks: the last token must still be computed.
        assert_eq!(blocks.share(&tokens[..32]), mine[..1]);
    }

    #[test]
    fn blocks_come_back_and_keep_their_content_until_taken() {
        let mut blocks = Blocks::new(2);
        let tokens: Vec<u32> = (0..17).collect();
        let mine = vec![blocks.take().unwrap(), blocks.take().unwrap()];
        assert!(blocks.take().is_none());
        blocks.publish(&tokens, &mine, 17);
        blocks.release(&mine);
        assert_eq!(blocks.free(), 2);
        let again = blocks.share(&tokens);
        assert_eq!((again.as_slice(), blocks.free()), (&mine[..1], 1));
        blocks.release(&again);
        blocks.take().unwrap();
        blocks.take().unwrap();
        assert!(blocks.share(&tokens).is_empty());
    }
}
