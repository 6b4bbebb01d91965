//! Which kernels a card takes: those for Hopper alone only where they have been seen, at this start and on this card, to agree with
//! the plain ones.

use super::attention::{HeadShape, KvPages, Span, Workspace};
use super::batch::{Batch, Limits, Singles, Steps};
use super::buffer::Buffer;
use super::driver::Hopper;
use super::matrix::{Matrix, Place, Then};
use super::tiles::Kind;
use super::{Activations, CudaError, Driver, Emit, Form, Norm, Ops, Precision, Way, Ways};
use crate::KvKind;
use std::sync::Arc;

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernels {
    /// Those that run on every card.
    Plain,
    /// The best that the card has and that pass the check.
    #[default]
    Auto,
}

impl std::str::FromStr for Kernels {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "plain" => Ok(Self::Plain),
            "auto" => Ok(Self::Auto),
            other => Err(format!(
                "`{other}` is no choice of kernels; there are plain and auto"
            )),
        }
    }
}

/// What was chosen, and why, in a line for the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    pub ways: Ways,
    pub why: String,
}

/// How far apart both kernels' results may be, as a share of the largest. Multiplies have the same bf16 operands and differ in the
/// order of f32 sums (about 1e-5 at these sizes); attention also rounds its weights to f16, at other scales (about 5e-4). A mistake in
/// a layout is of the order of one.
const MULTIPLY_APART: f32 = 1e-3;
const ATTEND_APART: f32 = 4e-3;

/// Chooses.
///
/// # Errors
/// The device failed in the check; nothing more can be done with it in this process.
pub fn choose(driver: &Arc<dyn Driver>, kernels: Kernels) -> Result<Choice, CudaError> {
    let facts = driver.facts();
    let plain = |why: String| Choice {
        ways: Ways::default(),
        why: format!("{}: plain kernels, {why}", facts.name),
    };
    if kernels == Kernels::Plain {
        return Ok(plain("as asked for".into()));
    }
    if let Hopper::Absent(why) = &facts.hopper {
        return Ok(plain(why.clone()));
    }
    let failed = |error: CudaError| {
        CudaError::device(
            "the check of the Hopper kernels",
            format!("{error}; start with --cuda-kernels plain"),
        )
    };
    let multiply = check_multiply(driver).map_err(failed)?;
    let attend = check_attention(driver).map_err(failed)?;
    let way = |apart: &Apart| if apart.is_fine() { Way::Hopper } else { Way::Plain };
    Ok(Choice {
        ways: Ways {
            multiply: way(&multiply),
            attend: way(&attend),
        },
        why: format!("{}: multiplies {multiply}; prompts {attend}", facts.name),
    })
}

/// The worst case of a check.
#[derive(Clone, Debug)]
struct Apart {
    case: String,
    share: f32,
    allowed: f32,
}

impl Apart {
    fn none(allowed: f32) -> Self {
        Self {
            case: String::new(),
            share: 0.0,
            allowed,
        }
    }

    fn is_fine(&self) -> bool {
        self.share <= self.allowed
    }

    /// NaN counts as infinitely far.
    fn take(&mut self, case: &str, got: &[f32], plain: &[f32]) {
        let largest = plain
            .iter()
            .fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs()));
        for (got, plain) in got.iter().zip(plain) {
            let share = (got - plain).abs() / largest;
            let share = if share.is_nan() { f32::INFINITY } else { share };
            if share > self.share {
                self.share = share;
                case.clone_into(&mut self.case);
            }
        }
    }
}

impl std::fmt::Display for Apart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_fine() {
            return write!(f, "on Hopper's kernels (checked: {:.0e} apart)", self.share);
        }
        write!(
            f,
            "on plain kernels, since Hopper's were {:.1e} of the largest value apart in {}, where {:.0e} is allowed",
            self.share, self.case, self.allowed
        )
    }
}

fn both(driver: &Arc<dyn Driver>) -> (Ops, Ops) {
    let hopper = Ways {
        multiply: Way::Hopper,
        attend: Way::Hopper,
    };
    let plain = Ops::new(driver.clone(), Precision::Fast);
    (plain.clone(), plain.with_ways(hopper))
}

/// Numbers in −1..1, the same every time.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / (1u64 << 31) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Rows for a block and an eighth of the next, columns that leave half a stage, tokens for both sizes of tiles with a rest.
const ROWS: usize = 144;
const COLUMNS: usize = 352;

fn check_multiply(driver: &Arc<dyn Driver>) -> Result<Apart, CudaError> {
    let (plain, hopper) = both(driver);
    let mut apart = Apart::none(MULTIPLY_APART);
    // Enough tokens that some take the tile of 256, whatever the number of multiprocessors.
    let many = 256 * (plain.facts.processors as usize / 2 + 1) - 37;
    for tokens in [150, many] {
        let x = Buffer::from_slice(driver, &numbers(tokens * COLUMNS, 1))?;
        let mut halves = Activations::new(driver, tokens * COLUMNS)?;
        let as_it_is = Norm {
            x: &x,
            weight: None,
            columns: COLUMNS,
            tokens,
            epsilon: 0.0,
        };
        plain.norm(&as_it_is, Emit::All, Form::Bf16, &mut halves)?;
        let quantized = [Some(Kind::W4), Some(Kind::W8), Some(Kind::W8x16)];
        // Only bf16 has the larger tile.
        let others = if tokens == many { &[][..] } else { &quantized };
        for kind in std::iter::once(None).chain(others.iter().copied()) {
            let matrix = Matrix::synthetic(&plain, (ROWS, COLUMNS), kind, 7)?;
            // The plain kernel for bf16 is given what the tiles mean.
            let unpacked = match kind {
                Some(_) => Some(Matrix::from_bf16(
                    driver,
                    (ROWS, COLUMNS),
                    &plain.unpacked(&matrix)?,
                )?),
                None => None,
            };
            let stride = ROWS + 16;
            let mut out = [0u32; 2].map(|_| Buffer::from_slice(driver, &vec![0.5f32; tokens * stride]));
            let [ours, theirs] = &mut out;
            let (ours, theirs) = (ours.as_mut().map_err(take)?, theirs.as_mut().map_err(take)?);
            for then in [Then::Replace, Then::Add] {
                let place = Place {
                    offset: 16,
                    stride,
                    then,
                };
                hopper.by_hopper(&matrix, &halves, (ours.at() + 64, place))?;
                let reference = unpacked.as_ref().unwrap_or(&matrix);
                plain.multiply_plainly(reference, &halves, (theirs, place))?;
            }
            let case = format!("{kind:?} with {tokens} tokens");
            apart.take(
                &case,
                &ours.read(tokens * stride)?,
                &theirs.read(tokens * stride)?,
            );
        }
    }
    Ok(apart)
}

fn take(error: &mut CudaError) -> CudaError {
    CudaError::device("room for the check", &*error)
}

const POSITIONS: usize = 320;

fn check_attention(driver: &Arc<dyn Driver>) -> Result<Apart, CudaError> {
    let (plain, hopper) = both(driver);
    let mut apart = Apart::none(ATTEND_APART);
    for (heads, kv_heads, dim, window) in [(6, 2, 64, 0), (4, 1, 128, 100), (2, 2, 128, 0), (3, 1, 256, 0)] {
        let shape = HeadShape { heads, kv_heads, dim };
        let limits = Limits {
            tokens: 256,
            sequences: 2,
            table: POSITIONS / 16,
            blocks: 48,
            vocabulary: 1,
            positions: POSITIONS,
        };
        let mut pages = KvPages::new(driver, (shape, KvKind::F16), limits.blocks)?;
        let mut work = Workspace::new(driver, shape, (limits.tokens, 1), POSITIONS)?;
        let mut batch = Batch::new(driver, limits)?;
        // Blocks of both lie apart and backwards.
        let tables: [Vec<u32>; 2] = [0, 1].map(|odd| (0..18).map(|block| 47 - 2 * block - odd).collect());
        let steps = [(150usize, 87usize), (70, 3)];
        let parts: Vec<Steps<'_>> = steps
            .iter()
            .zip(&tables)
            .map(|((count, first), blocks)| Steps {
                tokens: &[0; 256][..*count],
                first: *first,
                blocks,
                wants_logits: false,
            })
            .collect();
        batch.write(&parts, Singles::Lone)?;
        fill(
            &mut pages,
            &mut work,
            &tables,
            steps.map(|(count, first)| count + first),
        )?;
        let span = Span {
            window,
            scale: 2.0 / (dim as f32).sqrt(),
        };
        let len = batch.count() * heads * dim;
        let mut results = [Vec::new(), Vec::new()];
        for (ops, result) in [&plain, &hopper].into_iter().zip(&mut results) {
            let mut out = Buffer::new(driver, len)?;
            ops.attend(&batch, &span, (&pages, &mut work), &mut out)?;
            *result = out.read(len)?;
        }
        let case = format!("{heads} heads of {dim} on {kv_heads}, window {window}");
        apart.take(&case, &results[1], &results[0]);
    }
    Ok(apart)
}

/// Queries, keys and values; NaN where no position is, as memory may hold.
fn fill(
    pages: &mut KvPages,
    work: &mut Workspace,
    tables: &[Vec<u32>; 2],
    ends: [usize; 2],
) -> Result<(), CudaError> {
    let bits = |values: Vec<f32>| -> Vec<u16> {
        let half = |value: &f32| half::f16::from_f32(*value).to_bits();
        values.iter().map(half).collect()
    };
    let (shape, len) = (pages.shape, pages.keys.len());
    let mut is_there = vec![false; pages.blocks * 16];
    for (table, end) in tables.iter().zip(ends) {
        for position in 0..end {
            is_there[table[position / 16] as usize * 16 + position % 16] = true;
        }
    }
    let cached = |seed| {
        let mut bits = bits(numbers(len, seed));
        for (at, row) in bits.chunks_exact_mut(shape.dim).enumerate() {
            if !is_there[at / (16 * shape.kv_heads) * 16 + at % 16] {
                row.fill(0x7e00);
            }
        }
        bits
    };
    pages.keys.write(&cached(2))?;
    pages.values.write(&cached(3))?;
    work.queries.write(&bits(numbers(work.queries.len(), 4)))
}
