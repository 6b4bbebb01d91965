//! Fair shares: how much each tenant has been served, for its weight. Owns the counters; refuses to know requests.

use super::Class;
use std::collections::HashMap;
use std::sync::Arc;

/// What one token counts to a tenant of weight 1.
const SCALE: u64 = 1 << 20;
/// Tenants remembered; beyond it those without requests are forgotten.
const REMEMBERED: usize = 4096;

#[derive(Clone, Copy, Debug, Default)]
struct Tenant {
    weight: u64,
    counter: u64,
    requests: usize,
    /// Tokens it was served, output counted twice.
    tokens: u64,
}

/// What a tenant was served since the start, or since it was forgotten.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Share {
    pub tenant: Arc<str>,
    pub class: Class,
    pub weight: u64,
    /// Prompt tokens that were computed, and output tokens twice.
    pub served_tokens: u64,
    /// Requests that run or wait.
    pub requests: usize,
}

/// Virtual token counters, for each class on its own.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    known: HashMap<(Class, Arc<str>), Tenant>,
    /// The smallest counter there has been among tenants with requests: who comes from idleness begins here, and so
    /// saves nothing up and owes nothing.
    floor: HashMap<Class, u64>,
}

impl Tenants {
    pub(super) fn counter(&self, class: Class, tenant: &Arc<str>) -> u64 {
        self.known
            .get(&(class, tenant.clone()))
            .map_or(0, |tenant| tenant.counter)
    }

    /// A request of a tenant is there.
    pub(super) fn arrived(&mut self, class: Class, tenant: &Arc<str>, weight: u32) {
        let floor = self.raise(class);
        let known = self.known.entry((class, tenant.clone())).or_default();
        if known.requests == 0 {
            known.counter = known.counter.max(floor);
        }
        known.weight = u64::from(weight.max(1));
        known.requests += 1;
        if self.known.len() > REMEMBERED {
            self.known.retain(|_, tenant| tenant.requests > 0);
        }
    }

    /// A request of a tenant is gone.
    pub(super) fn left(&mut self, class: Class, tenant: &Arc<str>) {
        self.raise(class);
        if let Some(known) = self.known.get_mut(&(class, tenant.clone())) {
            known.requests = known.requests.saturating_sub(1);
        }
        let of_class = || self.known.iter().filter(|((of, _), _)| *of == class);
        if of_class().all(|(_, tenant)| tenant.requests == 0) {
            // Nobody waits for anybody: all begin anew, and alike.
            let largest = of_class().map(|(_, tenant)| tenant.counter).max();
            self.floor.insert(class, largest.unwrap_or(0));
        }
    }

    pub(super) fn served(&mut self, class: Class, tenant: &Arc<str>, tokens: u64) {
        if let Some(known) = self.known.get_mut(&(class, tenant.clone())) {
            known.counter += tokens * SCALE / known.weight.max(1);
            known.tokens += tokens;
        }
    }

    /// Everybody who is known.
    pub(super) fn shares(&self) -> Vec<Share> {
        let share = |((class, name), tenant): (&(Class, Arc<str>), &Tenant)| Share {
            tenant: name.clone(),
            class: *class,
            weight: tenant.weight,
            served_tokens: tenant.tokens,
            requests: tenant.requests,
        };
        let mut shares: Vec<Share> = self.known.iter().map(share).collect();
        shares.sort_by(|a, b| (a.class, &a.tenant).cmp(&(b.class, &b.tenant)));
        shares
    }

    fn raise(&mut self, class: Class) -> u64 {
        let active = self
            .known
            .iter()
            .filter(|((of, _), tenant)| *of == class && tenant.requests > 0);
        let smallest = active.map(|(_, tenant)| tenant.counter).min();
        let floor = self.floor.entry(class).or_default();
        *floor = (*floor).max(smallest.unwrap_or(0));
        *floor
    }
}
