//! Pools: what goes to one provider, model and endpoint waits together, goes together, and is cut to the provider's caps.

use crate::SECOND;

/// One item as a pool knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    pub bytes: u64,
    pub deadline_us: i64,
    /// A hash of what it has in common with others: equal ones go side by side, for the provider's prompt cache.
    pub prefix: u64,
}

/// A pool in sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub items: u64,
    pub bytes: u64,
    /// When the oldest came.
    pub oldest_us: i64,
    pub earliest_deadline_us: i64,
}

/// When a pool goes.
#[derive(Clone, Copy, Debug)]
pub struct FlushRules {
    pub items: u64,
    pub bytes: u64,
    /// The longest that an item waits for company.
    pub age_us: i64,
    /// Of an item's time, waiting for company may take at most one part in so many.
    pub slack_part: i64,
}

/// What a provider takes in one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    pub items: usize,
    pub bytes: u64,
}

impl Caps {
    /// 50,000 lines or 200 MB in a file.
    pub const OPENAI: Caps = Caps {
        items: 50_000,
        bytes: 200_000_000,
    };
    /// 100,000 requests or 256 MB.
    pub const ANTHROPIC: Caps = Caps {
        items: 100_000,
        bytes: 256_000_000,
    };
}

/// Why a pool goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    Count,
    Bytes,
    Age,
    Slack,
}

/// A single item waits for a second one so many times longer than several would.
const LONELY: i64 = 4;

/// Whether a pool goes now. One item alone goes only when its deadline leaves no more time to wait for company.
pub fn flush(pool: &Summary, rules: &FlushRules, now_us: i64) -> Option<Flush> {
    if pool.items == 0 {
        return None;
    }
    if pool.items >= rules.items {
        return Some(Flush::Count);
    }
    if pool.bytes >= rules.bytes {
        return Some(Flush::Bytes);
    }
    let patience = if pool.items == 1 { LONELY } else { 1 };
    let waited = now_us.saturating_sub(pool.oldest_us);
    let whole = pool.earliest_deadline_us.saturating_sub(pool.oldest_us);
    if waited.saturating_mul(rules.slack_part) >= whole.saturating_mul(patience) {
        return Some(Flush::Slack);
    }
    (waited >= rules.age_us.saturating_mul(patience)).then_some(Flush::Age)
}

/// Items whose deadlines are of one class may share a batch: what one of them needs early does not end the wait of those
/// that have a day. 0: under an hour, 1: under three, 2: under ten, 3: longer.
pub fn slack_class(slack_us: i64) -> u8 {
    match slack_us / (3600 * SECOND) {
        ..1 => 0,
        1..3 => 1,
        3..10 => 2,
        _ => 3,
    }
}

/// Cuts a pool into batches: equal prefixes side by side, earlier deadlines first, each within the caps. Returns positions
/// in `items`; each appears once. An item that is larger than the caps allow is alone in its batch.
pub fn cut(items: &[Pending], caps: Caps) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|position| (items[*position].prefix, items[*position].deadline_us, *position));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut bytes = 0u64;
    for position in order {
        let size = items[position].bytes;
        let fits = batches
            .last()
            .is_some_and(|batch| batch.len() < caps.items.max(1) && bytes.saturating_add(size) <= caps.bytes);
        if fits {
            bytes += size;
            if let Some(batch) = batches.last_mut() {
                batch.push(position);
            }
        } else {
            bytes = size;
            batches.push(vec![position]);
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: FlushRules = FlushRules {
        items: 100,
        bytes: 1_000_000,
        age_us: 60 * SECOND,
        slack_part: 20,
    };

    fn pool(items: u64, deadline_s: i64) -> Summary {
        Summary {
            items,
            bytes: items * 100,
            oldest_us: 0,
            earliest_deadline_us: deadline_s * SECOND,
        }
    }

    #[test]
    fn a_pool_goes_by_count_bytes_age_or_slack() {
        let at = |pool: Summary, now_s: i64| flush(&pool, &RULES, now_s * SECOND);
        assert_eq!(at(pool(100, 86_400), 0), Some(Flush::Count));
        assert_eq!(
            at(
                Summary {
                    bytes: 2_000_000,
                    ..pool(2, 86_400)
                },
                0
            ),
            Some(Flush::Bytes)
        );
        assert_eq!(at(pool(2, 86_400), 59), None);
        assert_eq!(at(pool(2, 86_400), 60), Some(Flush::Age));
        assert_eq!(at(pool(2, 600), 30), Some(Flush::Slack));
        assert_eq!(at(pool(0, 600), 600), None);
    }

    #[test]
    fn one_alone_waits_for_company_while_it_may() {
        assert_eq!(flush(&pool(1, 86_400), &RULES, 60 * SECOND), None);
        assert_eq!(flush(&pool(1, 86_400), &RULES, 240 * SECOND), Some(Flush::Age));
        assert_eq!(flush(&pool(1, 600), &RULES, 120 * SECOND), Some(Flush::Slack));
    }

    proptest! {
        #[test]
        fn every_item_is_in_one_batch_and_no_batch_is_above_the_caps(
            sizes in prop::collection::vec((1u64..400, 0u64..5), 0..300), count in 1usize..40, bytes in 400u64..4000,
        ) {
            let items: Vec<Pending> = sizes
                .iter()
                .map(|(bytes, prefix)| Pending { bytes: *bytes, deadline_us: 0, prefix: *prefix })
                .collect();
            let batches = cut(&items, Caps { items: count, bytes });
            let mut all: Vec<usize> = batches.concat();
            let order: Vec<u64> = all.iter().map(|position| items[*position].prefix).collect();
            prop_assert!(order.is_sorted(), "equal prefixes are side by side");
            all.sort_unstable();
            prop_assert_eq!(all, (0..items.len()).collect::<Vec<_>>());
            for batch in batches {
                prop_assert!(batch.len() <= count);
                prop_assert!(batch.iter().map(|position| items[*position].bytes).sum::<u64>() <= bytes);
            }
        }
    }
}
