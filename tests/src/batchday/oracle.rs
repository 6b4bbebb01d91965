//! The least that each request could have cost, by someone who knows the future: for every minute between its arrival and
//! its deadline, what would have come in time and at which price. A bound below every schedule, since it lets each request
//! have the whole provider to itself; only the own engine is handed out once, dearest request first.

use super::future::{Future, price};
use super::traffic::{Model, Request};
use super::{MINUTE, run::cost};
use batch::Way;

pub(crate) fn cheapest(future: &Future, requests: &[Request]) -> i64 {
    let mut total = 0;
    let mut open: Vec<&Request> = Vec::new();
    for request in requests {
        let Some(deadline) = request.deadline_us else {
            continue;
        };
        match request.model {
            Model::Open => open.push(request),
            model => total += cost(request, best(future, request, model, deadline)),
        }
    }
    total + engine(future, open)
}

fn best(future: &Future, request: &Request, model: Model, deadline: i64) -> Way {
    let minutes = || (request.at_us..deadline).step_by(usize::try_from(MINUTE).unwrap_or(1));
    let batch = minutes().any(|at| future.batch_ends(model, at) <= deadline);
    let flex = model == Model::Openai
        && minutes().any(|at| future.flex(at).is_some_and(|took| at + took <= deadline));
    if batch || flex { Way::Batch } else { Way::Standard }
}

/// In order of deadline the engine takes what it can; the rest goes to a batch. Without preemption this is not the very
/// best, but the engine's share is a small part of the money.
fn engine(future: &Future, mut open: Vec<&Request>) -> i64 {
    open.sort_by_key(|request| request.at_us);
    let (mut free, mut total) = (0, 0);
    for request in open {
        let deadline = request.deadline_us.unwrap_or(request.at_us);
        let ends = future.local_ends(free.max(request.at_us), request.tokens);
        if ends <= deadline {
            free = ends;
            total += cost(request, Way::Local);
        } else {
            total += cost(request, best(future, request, Model::Open, deadline));
        }
    }
    debug_assert!(price(Model::Open, Way::Local) < price(Model::Open, Way::Batch));
    total
}
