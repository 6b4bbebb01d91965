//! What a journal says about requests that an earlier process never finished.

use crate::journal::Entry;
use crate::reservation::Intent;
use crate::settlement::{CellName, Post, Settlement};
use exchange::{AttemptOutcome, AttemptRecord, Money, Record, RequestId, Usage, UsageSource};
use smallvec::SmallVec;
use std::collections::BTreeMap;

struct Unfinished {
    held: Money,
    cells: SmallVec<[CellName; 4]>,
    intents: Vec<Intent>,
}

/// What to post: what was settled, and for every request that was cut off a settlement at what was held for it.
pub(crate) fn recover(entries: Vec<Entry<'static>>) -> Vec<Settlement> {
    let mut unfinished: BTreeMap<RequestId, Unfinished> = BTreeMap::new();
    let mut settled = Vec::new();
    for entry in entries {
        match entry {
            Entry::Began {
                request,
                held,
                cells,
                intent,
            } => {
                let open = unfinished.entry(request).or_insert(Unfinished {
                    held,
                    cells: SmallVec::new(),
                    intents: Vec::new(),
                });
                open.held = held;
                open.cells = cells;
                open.intents.push(intent.into_owned());
            }
            Entry::Extended { request, held } => {
                if let Some(open) = unfinished.get_mut(&request) {
                    open.held = held;
                }
            }
            Entry::Settled { settlement } => {
                let settlement = settlement.into_owned();
                unfinished.remove(&settlement.record.request);
                settled.push(settlement);
            }
        }
    }
    let cut_off = unfinished.into_iter().filter_map(|(request, open)| {
        let record = estimate(request, &open.intents, open.held)?;
        let amount = record.total();
        let posts = open.cells.into_iter().map(|cell| Post { cell, amount }).collect();
        Some(Settlement {
            record,
            held: open.held,
            late: false,
            posts,
            decision: None,
        })
    });
    settled.extend(cut_off);
    settled
}

/// The record of a request that nobody saw end: its last attempt is charged what was held, since the provider may
/// have produced that much; attempts before it had failed without an answer.
pub(crate) fn estimate(request: RequestId, intents: &[Intent], held: Money) -> Option<Record> {
    let last = intents.last()?;
    let opening = &last.opening;
    let attempts = intents.iter().map(|intent| {
        let live = intent.number == last.number;
        let mut charge = intent.estimate.clone();
        charge.lines.clear();
        charge.total = if live { held } else { Money::ZERO };
        AttemptRecord {
            number: intent.number,
            deployment: intent.deployment.clone(),
            provider: intent.provider.clone(),
            model: intent.model.clone(),
            class: intent.class,
            outcome: if live {
                AttemptOutcome::Crashed
            } else {
                AttemptOutcome::Failed
            },
            status: 0,
            usage: if live {
                intent.usage
            } else {
                Usage::new(UsageSource::Estimated)
            },
            charge,
            started_unix_us: intent.started_unix_us,
            duration_us: 0,
        }
    });
    Some(Record {
        attempts: attempts.collect(),
        ..opening.record(request)
    })
}
