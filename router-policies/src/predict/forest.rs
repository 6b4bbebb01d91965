//! Extremely randomised regression trees with several outputs: splits are drawn at random and judged by how much they
//! explain of all outputs at once, so that outcomes of many models share strength.
//!
//! Owns: growing and asking the trees. Refuses to know: what inputs and outputs mean. Invariants: the same rows and
//! seed give the same trees; an answer is a mean of training targets, never outside their range.

use super::draws::Draws;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug)]
pub struct Growth {
    pub trees: usize,
    /// Fewest rows in a leaf.
    pub leaf: usize,
    /// Inputs tried at each split.
    pub tries: usize,
    pub seed: u64,
}

/// Nodes of all trees in one list; leaves point into `values`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Forest {
    roots: Vec<u32>,
    nodes: Vec<Node>,
    /// Means of leaves in 1/255 of the range 0 … 1, `outputs` each.
    values: Vec<u8>,
    outputs: u32,
}

/// `input` is [`LEAF`] in a leaf; then `low` is its place in `values`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Node {
    input: u16,
    below: f32,
    low: u32,
    high: u32,
}

const LEAF: u16 = u16::MAX;

struct Grower<'d> {
    rows: &'d [Vec<f32>],
    targets: &'d [Vec<f32>],
    growth: Growth,
    draws: Draws,
    forest: Forest,
}

impl Forest {
    /// Targets lie in 0 … 1; all of one length.
    pub fn grow(rows: &[Vec<f32>], targets: &[Vec<f32>], growth: Growth) -> Self {
        let outputs = targets.first().map_or(0, Vec::len);
        let mut grower = Grower {
            rows,
            targets,
            growth,
            draws: Draws::new(growth.seed),
            forest: Self {
                outputs: outputs as u32,
                ..Self::default()
            },
        };
        for _ in 0..growth.trees {
            let mut all: Vec<u32> = (0..rows.len() as u32).collect();
            let root = grower.node(&mut all);
            grower.forest.roots.push(root);
        }
        grower.forest
    }

    /// Whether it answers this many outputs and every path in it ends: children come after their parent.
    pub fn fits(&self, outputs: usize) -> bool {
        let ends = |(at, node): (usize, &Node)| {
            let children = [node.low, node.high].map(|child| child as usize);
            node.input == LEAF
                || children
                    .iter()
                    .all(|child| *child > at && *child < self.nodes.len())
        };
        self.outputs as usize == outputs && self.nodes.iter().enumerate().all(ends)
    }

    /// Mean over the trees, by output.
    pub fn ask(&self, row: &[f32]) -> Vec<f32> {
        let outputs = self.outputs as usize;
        let mut sums = vec![0_u32; outputs];
        for root in &self.roots {
            let mut at = *root as usize;
            while let Some(node) = self.nodes.get(at) {
                if node.input == LEAF {
                    let start = node.low as usize;
                    let leaf = self.values.get(start..start + outputs).unwrap_or_default();
                    sums.iter_mut()
                        .zip(leaf)
                        .for_each(|(sum, value)| *sum += u32::from(*value));
                    break;
                }
                let value = row.get(node.input as usize).copied().unwrap_or_default();
                at = if value < node.below { node.low } else { node.high } as usize;
            }
        }
        let scale = 1.0 / (255.0 * self.roots.len().max(1) as f32);
        sums.into_iter().map(|sum| sum as f32 * scale).collect()
    }
}

impl Grower<'_> {
    fn node(&mut self, members: &mut [u32]) -> u32 {
        let at = self.forest.nodes.len();
        self.forest.nodes.push(Node {
            input: LEAF,
            below: 0.0,
            low: 0,
            high: 0,
        });
        let node = match self.split(members) {
            Some((input, below)) => {
                let middle = partition(members, |row| self.rows[row as usize][input] < below);
                let (low, high) = members.split_at_mut(middle);
                Node {
                    input: input as u16,
                    below,
                    low: self.node(low),
                    high: self.node(high),
                }
            }
            None => self.leaf(members),
        };
        self.forest.nodes[at] = node;
        at as u32
    }

    fn leaf(&mut self, members: &[u32]) -> Node {
        let low = self.forest.values.len() as u32;
        for mean in self.means(members) {
            self.forest
                .values
                .push((mean.clamp(0.0, 1.0) * 255.0).round() as u8);
        }
        Node {
            input: LEAF,
            below: 0.0,
            low,
            high: 0,
        }
    }

    fn means(&self, members: &[u32]) -> Vec<f32> {
        let mut sums = vec![0.0; self.forest.outputs as usize];
        for row in members {
            for (sum, value) in sums.iter_mut().zip(&self.targets[*row as usize]) {
                *sum += value;
            }
        }
        let count = members.len().max(1) as f32;
        sums.into_iter().map(|sum| sum / count).collect()
    }

    /// The best of a few random cuts, if any leaves enough rows on both sides.
    fn split(&mut self, members: &[u32]) -> Option<(usize, f32)> {
        if members.len() < 2 * self.growth.leaf {
            return None;
        }
        let inputs = self.rows.first()?.len();
        let mut best: Option<(f32, usize, f32)> = None;
        let mut useful = 0;
        for _ in 0..4 * self.growth.tries {
            if useful == self.growth.tries {
                break;
            }
            let input = self.draws.below(inputs);
            let (mut least, mut most) = (f32::MAX, f32::MIN);
            for row in members {
                let value = self.rows[*row as usize][input];
                (least, most) = (least.min(value), most.max(value));
            }
            if least >= most {
                continue;
            }
            useful += 1;
            let below = least + (most - least) * self.draws.unit() as f32;
            let Some(score) = self.score(members, input, below) else {
                continue;
            };
            if best.is_none_or(|(best, ..)| score > best) {
                best = Some((score, input, below));
            }
        }
        best.map(|(_, input, below)| (input, below))
    }

    /// Sum over both sides of (sum of targets)² / rows: larger explains more. None where a side is too small.
    fn score(&self, members: &[u32], input: usize, below: f32) -> Option<f32> {
        let outputs = self.forest.outputs as usize;
        let mut sums = vec![0.0_f32; 2 * outputs];
        let mut low = 0;
        for row in members {
            let is_low = self.rows[*row as usize][input] < below;
            low += usize::from(is_low);
            let side = if is_low {
                &mut sums[..outputs]
            } else {
                &mut sums[outputs..]
            };
            for (sum, value) in side.iter_mut().zip(&self.targets[*row as usize]) {
                *sum += value;
            }
        }
        let high = members.len() - low;
        if low.min(high) < self.growth.leaf {
            return None;
        }
        let squares = |side: &[f32]| side.iter().map(|sum| sum * sum).sum::<f32>();
        Some(squares(&sums[..outputs]) / low as f32 + squares(&sums[outputs..]) / high as f32)
    }
}

/// Brings those that satisfy `first` to the front and answers how many they are.
fn partition(members: &mut [u32], first: impl Fn(u32) -> bool) -> usize {
    let mut front = 0;
    for at in 0..members.len() {
        if first(members[at]) {
            members.swap(front, at);
            front += 1;
        }
    }
    front
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_find_a_step_and_are_the_same_for_a_seed() {
        let mut draws = Draws::new(3);
        let rows: Vec<Vec<f32>> = (0..400)
            .map(|_| vec![draws.unit() as f32, draws.unit() as f32])
            .collect();
        let targets: Vec<Vec<f32>> = rows
            .iter()
            .map(|r| vec![if r[0] > 0.5 { 0.9 } else { 0.1 }, 0.5])
            .collect();
        let growth = Growth {
            trees: 40,
            leaf: 5,
            tries: 2,
            seed: 1,
        };
        let forest = Forest::grow(&rows, &targets, growth);
        let (low, high) = (forest.ask(&[0.2, 0.5]), forest.ask(&[0.8, 0.5]));
        assert!(low[0] < 0.2 && high[0] > 0.8, "{low:?} {high:?}");
        assert!((low[1] - 0.5).abs() < 0.01);
        assert_eq!(
            Forest::grow(&rows, &targets, growth).ask(&[0.4, 0.1]),
            forest.ask(&[0.4, 0.1])
        );
    }
}
