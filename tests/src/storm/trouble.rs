//! What goes wrong: nodes are killed, and what they share is stopped and started again.

use super::dice::Dice;
use super::nodes::Node;
use super::store::Store;
use crate::redis::Redis;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::sleep;

/// How much of it there is, spread evenly over the requests.
#[derive(Clone, Copy, Debug)]
pub struct Trouble {
    pub requests: usize,
    pub kills: usize,
    /// Of the store, and of Redis where there is one.
    pub outages: usize,
    pub outage: Duration,
    pub seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    Kill,
    Store,
    Redis,
}

impl Trouble {
    fn events(&self, store: &Store, redis: Option<&Redis>) -> Vec<Event> {
        let mut outages = Vec::new();
        for _ in 0..self.outages {
            if matches!(store, Store::Postgres(_)) {
                outages.push(Event::Store);
            }
            if redis.is_some() {
                outages.push(Event::Redis);
            }
        }
        let mut events = vec![Event::Kill; self.kills];
        let count = outages.len();
        for (number, outage) in outages.into_iter().enumerate() {
            events.insert(number + self.kills * (number + 1) / (count + 1), outage);
        }
        events
    }

    /// Until all of it has happened.
    pub async fn happen(
        &self,
        nodes: &[Node],
        (store, mut redis): (&mut Store, Option<&mut Redis>),
        done: &AtomicUsize,
    ) {
        let mut dice = Dice::new(self.seed.wrapping_add(77));
        let events = self.events(store, redis.as_deref());
        for (number, event) in events.iter().enumerate() {
            let at = self.requests * (number + 1) / (events.len() + 1);
            while done.load(Ordering::SeqCst) < at {
                sleep(Duration::from_millis(10)).await;
            }
            match event {
                Event::Store => {
                    println!("at {at} requests: the store is killed for {:?}", self.outage);
                    store.stop();
                    sleep(self.outage).await;
                    store.start();
                }
                Event::Redis => {
                    println!("at {at} requests: Redis is killed for {:?}", self.outage);
                    let redis = redis.as_deref_mut().unwrap();
                    redis.kill();
                    sleep(self.outage).await;
                    redis.start_again();
                }
                Event::Kill => {
                    let node = &nodes[dice.roll(nodes.len() as u64) as usize];
                    node.kill();
                    sleep(Duration::from_millis(dice.roll(500))).await;
                    assert!(node.start(), "a killed node did not start again:\n{}", node.log());
                    println!("at {at} requests: a node was killed and started again");
                }
            }
        }
    }
}

/// One long absence of each after the other, under a steady load. `phase` says which: 0 before, 1 the store, 2 after it, 3
/// Redis, 4 after it.
pub async fn absences(
    (calm, away): (Duration, Duration),
    (store, redis): (&mut Store, Option<&mut Redis>),
    phase: &AtomicUsize,
) {
    sleep(calm).await;
    println!("the store is killed for {away:?}");
    store.stop();
    phase.store(1, Ordering::SeqCst);
    sleep(away).await;
    phase.store(2, Ordering::SeqCst);
    store.start();
    println!("the store is back");
    let Some(redis) = redis else { return };
    sleep(calm / 2).await;
    println!("Redis is killed for {away:?}");
    redis.kill();
    phase.store(3, Ordering::SeqCst);
    sleep(away).await;
    redis.start_again();
    phase.store(4, Ordering::SeqCst);
    println!("Redis is back");
}
