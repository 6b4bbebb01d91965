//! Gateways that carry batches, killed without warning, and the comparison of what they did with what was really done.
//!
//! Small batches keep coming at whichever node is up, while nodes are killed and started again; most kills fall between
//! two steps of some pack (packed, uploaded, made, asked, fetched, settled). At the end every node is up, every job ends,
//! and then: each item ended once; the provider was given no item more often than its row admits; what batches billed is
//! in the ledger to the nano-dollar; budgets say what requests say, and nothing stays held.

mod books;
mod callers;

use crate::fake::{Fake, sha256_hex};
use crate::postgres::Postgres;
use callers::Caller;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const KEY: &str = "tg_a_key_for_the_crash_tests_0123456789";
/// What items do at OpenAI: plain ones; ones that fail once; ones half of whose batch expires.
const OPENAI: [&str; 3] = [
    "fake-batch200",
    "fake-batch200-failfirst1-x1",
    "fake-batch200-bexpires-bpart50-x2",
];
/// The same at Anthropic.
const ANTHROPIC: [&str; 3] = [
    "fake-batch200-x3",
    "fake-batch200-failfirst1-x4",
    "fake-batch200-bexpires-bpart50-x5",
];
/// The same at Gemini, which thinks, and whose expired batches have no results.
const GEMINI: [&str; 3] = [
    "fake-batch200-think3-x6",
    "fake-batch200-failfirst1-x7",
    "fake-batch200-bexpires-x8",
];
/// Nano-dollars for a token in and out, in a batch; at once it is twice that.
const BATCH_NANOS: (i64, i64) = (500, 1000);
/// After the last kill, everything ends within this.
const PATIENCE: Duration = Duration::from_secs(180);

/// Whose batches are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Provider {
    Openai,
    Anthropic,
    Gemini,
    Mixed,
}

impl Provider {
    /// Kinds of batches, by the models of their items.
    fn kinds(self) -> &'static [[&'static str; 3]] {
        match self {
            Self::Openai => &[OPENAI],
            Self::Anthropic => &[ANTHROPIC],
            Self::Gemini => &[GEMINI],
            Self::Mixed => &[OPENAI, ANTHROPIC, GEMINI],
        }
    }
}

/// How hard to try.
pub struct Plan {
    pub nodes: usize,
    pub kills: u32,
    pub seed: u64,
    pub binary: PathBuf,
    pub postgres: bool,
    pub provider: Provider,
}

/// Where the store is.
enum Store {
    Postgres(Postgres),
    Sqlite(PathBuf),
}

impl Store {
    /// Rows of columns, as text.
    fn query(&self, sql: &str) -> Vec<Vec<String>> {
        let text = match self {
            Self::Postgres(postgres) => postgres.query("tollgate", sql),
            Self::Sqlite(path) => {
                let script = "import sqlite3,sys\nfor r in sqlite3.connect(sys.argv[1]).execute(sys.argv[2]): print('|'.join('' if v is None else str(v) for v in r))";
                let run = Command::new("python3")
                    .args(["-c", script])
                    .arg(path)
                    .arg(sql)
                    .output()
                    .unwrap();
                assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
                String::from_utf8(run.stdout).unwrap()
            }
        };
        let lines = text.lines().filter(|line| !line.is_empty());
        lines
            .map(|line| line.split('|').map(str::to_owned).collect())
            .collect()
    }

    fn number(&self, sql: &str) -> i64 {
        self.query(sql)[0][0].parse().unwrap_or(0)
    }
}

struct Node {
    folder: PathBuf,
    child: Option<Child>,
}

impl Node {
    fn start(&mut self, binary: &Path) -> String {
        let log = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.folder.join("log"))
            .unwrap();
        let mut child = Command::new(binary)
            .args(["serve", "--config"])
            .arg(self.folder.join("tollgate.yaml"))
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be started: {error}", binary.display()));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("listening on http://").map(str::to_owned))
            .unwrap_or_else(|| {
                panic!(
                    "a node ended: {}",
                    std::fs::read_to_string(self.folder.join("log")).unwrap()
                )
            });
        // Whatever else it prints must not find a closed pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        self.child = Some(child);
        address
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Addresses of the nodes that are up.
type Up = Arc<Mutex<Vec<Option<String>>>>;

/// Runs the plan; panics where a book does not agree. Returns the report.
pub fn run(plan: &Plan) -> String {
    let folder = tempfile::Builder::new()
        .prefix("tollgate-crash-")
        .tempdir()
        .unwrap();
    let fake = Fake::start();
    let (store, database) = if plan.postgres {
        let postgres = Postgres::start(&["fsync = off"]);
        let url = postgres.url();
        std::fs::write(folder.path().join("postgres"), url).unwrap();
        (
            Store::Postgres(postgres),
            "postgres: {url: \"file:../postgres\", connections: 6}, ".to_owned(),
        )
    } else {
        (
            Store::Sqlite(folder.path().join("node0/tollgate.db")),
            String::new(),
        )
    };
    let mut nodes: Vec<Node> = (0..plan.nodes)
        .map(|number| prepare(folder.path(), number, (&fake, &database)))
        .collect();
    let up: Up = Arc::new(Mutex::new(vec![None; plan.nodes]));
    for (number, node) in nodes.iter_mut().enumerate() {
        up.lock().unwrap()[number] = Some(node.start(&plan.binary));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..3)
        .map(|number| {
            let kinds = plan.provider.kinds();
            let caller = Caller::new(
                (up.clone(), stop.clone()),
                kinds,
                plan.seed.wrapping_mul(31) + number,
            );
            std::thread::spawn(move || caller.run())
        })
        .collect();
    let began = Instant::now();
    kill_at_random(plan, &mut nodes, &up);
    stop.store(true, Ordering::SeqCst);
    let accepted: Vec<String> = callers
        .into_iter()
        .flat_map(|caller| caller.join().unwrap())
        .collect();
    let killing = began.elapsed();
    wait_for_the_end(&store);
    for node in &mut nodes {
        node.stop();
    }
    let mut report = format!(
        "{} kills of {} nodes in {:.0} s\n",
        plan.kills,
        plan.nodes,
        killing.as_secs_f64()
    );
    let _ = write!(report, "{}", books::compare(&store, &fake, &accepted));
    report
}

fn kill_at_random(plan: &Plan, nodes: &mut [Node], up: &Up) {
    let mut dice = plan.seed | 1;
    let mut roll = move |end: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % end
    };
    for _ in 0..plan.kills {
        std::thread::sleep(Duration::from_millis(20 + roll(700)));
        let victim = roll(nodes.len() as u64) as usize;
        up.lock().unwrap()[victim] = None;
        nodes[victim].kill();
        std::thread::sleep(Duration::from_millis(roll(100)));
        let address = nodes[victim].start(&plan.binary);
        up.lock().unwrap()[victim] = Some(address);
    }
}

fn wait_for_the_end(store: &Store) {
    let until = Instant::now() + PATIENCE;
    loop {
        let open = store.number("SELECT count(*) FROM jobs WHERE state IN ('running', 'cancelling')");
        let held = store.number("SELECT count(*) FROM leases WHERE node LIKE 'job/%'");
        // A pack whose items were rescued is asked about until the provider has ended it, and may still be charged.
        let asked = store.number("SELECT count(*) FROM packs WHERE state NOT IN ('settled', 'void')");
        if open == 0 && held == 0 && asked == 0 {
            return;
        }
        assert!(
            Instant::now() < until,
            "{open} jobs and {asked} packs have not ended: {:?}",
            store.query("SELECT state, way, pack, problem, count(*) FROM job_items WHERE ended_us = 0 GROUP BY 1, 2, 3, 4 LIMIT 20")
        );
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn prepare(folder: &Path, number: usize, (fake, database): (&Fake, &str)) -> Node {
    let (base, gemini) = (fake.base_url(), fake.gemini_base_url());
    let folder = folder.join(format!("node{number}"));
    std::fs::create_dir_all(&folder).unwrap();
    let (mut deployments, mut prices) = (String::new(), String::new());
    let own = |provider, models: [&'static str; 3]| models.map(|model| (provider, model));
    let providers = [own("ob", OPENAI), own("ab", ANTHROPIC), own("gb", GEMINI)];
    for (provider, model) in providers.into_iter().flatten() {
        let _ = writeln!(
            deployments,
            "  - {{id: {model}, provider: {provider}, model: {model}, class: cheap, max_output_tokens: 50}}"
        );
        let _ = writeln!(
            prices,
            "  - {{provider: {provider}, model: {model}, input_per_mtok: \"1\", output_per_mtok: \"2\"}}"
        );
        let _ = writeln!(
            prices,
            "  - {{provider: {provider}, model: {model}, service_tier: batch, input_per_mtok: \"0.5\", output_per_mtok: \"1\"}}"
        );
    }
    let policy = format!(
        "version: 1\ndeployments:\n{deployments}routes:\n  - {{name: all, prefer: [{}]}}\n",
        OPENAI[0]
    );
    let hash = sha256_hex(KEY.as_bytes());
    let config = format!(
        r#"listen: [{{address: "127.0.0.1:0"}}]
admin: {{address: "127.0.0.1:0"}}
store: {{{database}journal: journal}}
log: {{filter: "warn,tollgate=info"}}
providers:
  ob: {{dialect: openai_chat, base_url: "{base}", credential: "file:credential", batch: openai}}
  ab: {{dialect: anthropic, base_url: "{base}", credential: "file:credential", batch: anthropic}}
  gb: {{dialect: openai_chat, base_url: "{gemini}", credential: "file:credential", batch: gemini}}
accounts:
  acme:
    budgets: [{{limit_dollars: "1000", per: total}}]
    teams: {{crash: {{keys: {{tests: {{hash: "sha256:{hash}"}}}}}}}}
prices:
{prices}batch: {{content_key: "file:content", poll_ms: 40, gather_ms: 50, rescue_call_ms: 2000, cancel_ms: 1000}}
"#
    );
    for (name, text) in [
        ("tollgate.yaml", config.as_str()),
        ("policy.yaml", policy.as_str()),
        ("credential", "sk-fake-credential"),
        ("content", "the content key of every node"),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
    Node { folder, child: None }
}
