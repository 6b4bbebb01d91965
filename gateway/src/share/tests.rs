//! Nodes that share limits through a real Redis server, which must be installed.

use super::*;
use crate::config::Secret;
use crate::limits::RateLimits;
use crate::telemetry::ShareMeters;
use ::tests::redis::Redis as Server;
use exchange::{AccountPath, Dialect, Facts, Surface};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

fn share(server: &Server, node: &str) -> Share {
    let settings = Redis {
        url: Secret::plain(&server.url()),
        timeout: Duration::from_secs(2),
        prefix: "test".into(),
    };
    Share::new(settings, node.into()).unwrap()
}

fn ask(name: &str, rule: Rule, tokens: i64, running: u32) -> Ask<'_> {
    Ask {
        name,
        rule,
        requests: 1,
        tokens,
        running,
    }
}

fn rule(requests: u32, tokens: u32, concurrency: u32) -> Rule {
    let limit = |limit: u32| (limit > 0).then_some(limit);
    Rule {
        requests_per_minute: limit(requests),
        tokens_per_minute: limit(tokens),
        concurrency: limit(concurrency),
    }
}

#[tokio::test]
async fn two_nodes_share_one_rate_and_every_subject_must_have_room() {
    let server = Server::start();
    let nodes = [share(&server, "a"), share(&server, "b")];
    let asks = || {
        [
            ask("org", rule(100, 0, 0), 10, 1),
            ask("team", rule(10, 0, 0), 10, 1),
        ]
    };
    let mut admitted = 0;
    for turn in 0..30 {
        match nodes[turn % 2].admit(&asks()).await.unwrap() {
            Ruling::Admitted(lefts) => {
                admitted += 1;
                assert_eq!(lefts[1].0.unwrap().remaining, 10 - admitted);
            }
            Ruling::Refused {
                index,
                dimension,
                wait_us,
            } => {
                assert_eq!((index, dimension), (1, Dimension::Requests));
                assert!(
                    wait_us > 0 && wait_us <= 6_000_000,
                    "one of ten a minute: {wait_us}"
                );
            }
        }
    }
    assert_eq!(admitted, 10);
    // What the team refused, the organisation was not charged.
    let Ruling::Admitted(lefts) = nodes[0]
        .admit(&[ask("org", rule(100, 0, 0), 1, 1)])
        .await
        .unwrap()
    else {
        panic!("the organisation has room");
    };
    assert_eq!(lefts[0].0.unwrap().remaining, 89);
}

#[tokio::test]
async fn a_crowd_on_two_nodes_gets_exactly_what_there_is() {
    let server = Server::start();
    let nodes = [Arc::new(share(&server, "a")), Arc::new(share(&server, "b"))];
    let mut crowd = JoinSet::new();
    for member in 0..200 {
        let node = nodes[member % 2].clone();
        crowd.spawn(async move {
            let ruling = node
                .admit(&[ask("team", rule(0, 5_000, 0), 100, 1)])
                .await
                .unwrap();
            matches!(ruling, Ruling::Admitted(_))
        });
    }
    let admitted = crowd
        .join_all()
        .await
        .into_iter()
        .filter(|admitted| *admitted)
        .count();
    // 5,000 tokens at 100 each; what comes in while the crowd is served is less than one more.
    assert!((50..=51).contains(&admitted), "{admitted}");
    // One call each, whatever else was said.
    let mut connection = nodes[0].connection().await.unwrap();
    let stats: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert!(stats.contains("cmdstat_evalsha:calls=200,"), "{stats}");
}

#[tokio::test]
async fn tokens_are_trued_up_and_running_requests_are_counted_over_all_nodes() {
    let server = Server::start();
    let (a, b) = (share(&server, "a"), share(&server, "b"));
    let tokens = rule(0, 1_000, 0);
    assert!(matches!(
        a.admit(&[ask("t", tokens, 1_000, 1)]).await.unwrap(),
        Ruling::Admitted(_)
    ));
    assert!(matches!(
        b.admit(&[ask("t", tokens, 500, 1)]).await.unwrap(),
        Ruling::Refused { .. }
    ));
    let over = Ask {
        requests: 0,
        ..ask("t", tokens, -700, 0)
    };
    a.settle(&[over]).await.unwrap();
    assert!(matches!(
        b.admit(&[ask("t", tokens, 500, 1)]).await.unwrap(),
        Ruling::Admitted(_)
    ));

    let at_once = rule(0, 0, 3);
    let admitted = async |share: &Share, running| {
        matches!(
            share.admit(&[ask("c", at_once, 1, running)]).await.unwrap(),
            Ruling::Admitted(_)
        )
    };
    assert!(admitted(&a, 1).await && admitted(&a, 2).await && admitted(&b, 1).await);
    assert!(!admitted(&b, 2).await, "three run already");
    a.settle(&[Ask {
        requests: 0,
        ..ask("c", at_once, 0, 1)
    }])
    .await
    .unwrap();
    assert!(admitted(&b, 2).await);
}

#[tokio::test]
async fn nodes_are_counted_and_a_server_that_is_not_there_is_told() {
    let server = Server::start();
    let (a, b) = (share(&server, "a"), share(&server, "b"));
    assert_eq!(a.heartbeat().await.unwrap(), 1);
    assert_eq!(b.heartbeat().await.unwrap(), 2);
    assert_eq!(a.heartbeat().await.unwrap(), 2);
    drop(server);
    assert!(a.admit(&[ask("t", rule(1, 0, 0), 1, 1)]).await.is_err());
    assert!(b.heartbeat().await.is_err());
}

fn account() -> AccountPath {
    AccountPath {
        org: "acme".into(),
        team: None,
        workflow: None,
        key: None,
    }
}

fn facts() -> Facts {
    Facts {
        dialect: Dialect::OpenaiChat,
        surface: Surface::ChatCompletions,
        model: "m".into(),
        stream: true,
        body_bytes: 0,
        input_tokens: 10,
        max_output_tokens: Some(10),
        turns: 1,
        tools: 0,
        images: 0,
        structured_output: false,
        thinking: None,
        service_tier: None,
        hour_cache: false,
        workflow: None,
        deadline_ms: None,
        labels: Vec::new(),
        prefix_hash: 0,
    }
}

/// A gateway, as far as its limits go.
struct Node {
    limits: Arc<RateLimits>,
    count: Arc<AtomicU32>,
}

impl Node {
    fn start(server: &Server, name: &str, tasks: &mut JoinSet<()>, stop: &watch::Receiver<bool>) -> Self {
        let share = Some((share(server, name), ShareMeters::install()));
        let limits = Arc::new(RateLimits::new(&[(account(), rule(40, 0, 0))], share));
        let count = Arc::new(AtomicU32::new(1));
        let told = count.clone();
        let keep = limits
            .clone()
            .keep_shared(move |nodes| told.store(nodes, Ordering::Relaxed), stop.clone());
        tasks.spawn(keep);
        Self { limits, count }
    }

    /// How many of so many requests get in.
    async fn admitted(&self, requests: usize) -> usize {
        let mut admitted = 0;
        for _ in 0..requests {
            admitted += usize::from(self.limits.admit(&account(), &facts()).await.is_ok());
        }
        admitted
    }
}

/// Waits until it holds, for as long as a slow machine may take.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn without_the_store_each_node_has_its_part_and_with_it_again_the_whole() {
    let mut server = Server::start();
    let (stop_all, stop) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let a = Node::start(&server, "a", &mut tasks, &stop);
    let b = Node::start(&server, "b", &mut tasks, &stop);
    eventually("both nodes know of each other", async || {
        a.count.load(Ordering::Relaxed) == 2 && b.count.load(Ordering::Relaxed) == 2
    })
    .await;
    assert_eq!(a.admitted(15).await + b.admitted(15).await, 30);
    server.kill();
    // Half of the limit each, of which a part was used before.
    let alone = a.admitted(100).await;
    assert!(alone <= 21, "{alone}");
    assert_eq!(a.admitted(5).await, 0);
    server.start_again();
    // The new server knows nothing of what was used: there is the whole limit, for both nodes together.
    eventually("the limit is shared again", async || a.admitted(1).await == 1).await;
    eventually("by both", async || b.limits.is_shared() && a.limits.is_shared()).await;
    let rest = a.admitted(100).await + b.admitted(100).await;
    assert!((30..=40).contains(&rest), "{rest}");
    let _ = stop_all.send(true);
    tasks.join_all().await;
}

#[tokio::test]
async fn a_limit_made_at_run_time_is_shared_like_any_other_and_the_configuration_goes_before_it() {
    let server = Server::start();
    let (stop_all, stop) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let nodes = ["a", "b"].map(|name| Node::start(&server, name, &mut tasks, &stop));
    let team: AccountPath = "acme/search".parse().unwrap();
    let few = |requests: u32| ledger::Rates {
        requests_per_minute: Some(requests),
        ..ledger::Rates::default()
    };
    let stored = watch::Sender::new(Arc::new(ledger::Limited::default()));
    for node in &nodes {
        tasks.spawn(node.limits.clone().follow(stored.subscribe(), stop.clone()));
        eventually("it is shared", async || node.limits.is_shared()).await;
    }
    // What the store says of an account of the configuration counts for nothing.
    stored.send_replace(Arc::new([(team.clone(), few(10)), (account(), few(1))].into()));
    let admitted = async |node: &Node| node.limits.admit(&team, &facts()).await;
    eventually("the limit is known", async || {
        let pass = admitted(&nodes[1]).await;
        pass.is_ok_and(|pass| pass.standing.requests.is_some_and(|left| left.limit == 10))
    })
    .await;
    let mut passed = 0;
    for turn in 0..20 {
        passed += usize::from(admitted(&nodes[turn % 2]).await.is_ok());
    }
    assert!(
        (8..=9).contains(&passed),
        "ten by both together, less those that looked: {passed}"
    );
    let refused = admitted(&nodes[0]).await.unwrap_err();
    assert!(
        refused.refusal.message.contains("acme/search"),
        "{:?}",
        refused.refusal
    );
    // Taken away again: the organisation's forty, of which each of these used one.
    stored.send_replace(Arc::default());
    eventually("nothing is in the way", async || {
        admitted(&nodes[0]).await.is_ok()
    })
    .await;
    let _ = stop_all.send(true);
    tasks.join_all().await;
}
