//! `/metrics`: vLLM's names under `local_`, so that its dashboards need one change, and cancels and cost besides.

use crate::generate::cost;
use crate::registry::Listed;
use engine::engine::{BOUNDS, Histogram};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// A metric's head, and its line for each loaded model.
struct Family<'a> {
    out: &'a mut String,
    models: &'a [Listed],
}

impl Family<'_> {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.out, "# HELP local_{name} {help}\n# TYPE local_{name} {kind}");
    }

    fn values(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        read: impl Fn(&Listed) -> Vec<(String, f64)>,
    ) {
        self.head(name, kind, help);
        for listed in self.models {
            for (labels, value) in read(listed) {
                let _ = writeln!(
                    self.out,
                    "local_{name}{{model_name=\"{}\"{labels}}} {value}",
                    escaped(&listed.name)
                );
            }
        }
    }

    fn histogram(&mut self, name: &str, help: &str, read: impl Fn(&engine::engine::Metrics) -> &Histogram) {
        self.head(name, "histogram", help);
        for listed in self.models {
            let Some(model) = &listed.model else { continue };
            let (counts, sum) = read(model.engine.metrics()).read();
            let name_of = escaped(&listed.name);
            for (at, count) in counts.iter().enumerate() {
                let bound = BOUNDS.get(at).map_or_else(|| "+Inf".into(), ToString::to_string);
                let _ = writeln!(
                    self.out,
                    "local_{name}_bucket{{model_name=\"{name_of}\",le=\"{bound}\"}} {count}"
                );
            }
            let _ = writeln!(self.out, "local_{name}_sum{{model_name=\"{name_of}\"}} {sum}");
            let _ = writeln!(
                self.out,
                "local_{name}_count{{model_name=\"{name_of}\"}} {}",
                counts[BOUNDS.len()]
            );
        }
    }
}

fn escaped(name: &str) -> String {
    name.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// Everything, in Prometheus' text format.
pub(crate) fn render(models: &[Listed], nanodollars_per_hour: u64) -> String {
    let mut out = String::new();
    let mut family = Family {
        out: &mut out,
        models,
    };
    gauges(&mut family);
    counters(&mut family);
    costs(&mut family, nanodollars_per_hour);
    for (name, help, read) in HISTOGRAMS {
        family.histogram(name, help, read);
    }
    out
}

type ReadHistogram = fn(&engine::engine::Metrics) -> &Histogram;

const HISTOGRAMS: [(&str, &str, ReadHistogram); 8] = [
    (
        "time_to_first_token_seconds",
        "From a request's arrival to its first token.",
        |metrics| &metrics.first_token,
    ),
    (
        "inter_token_latency_seconds",
        "Between two tokens of an answer.",
        |metrics| &metrics.between_tokens,
    ),
    (
        "e2e_request_latency_seconds",
        "From a request's arrival to its last token.",
        |metrics| &metrics.end_to_end,
    ),
    ("request_queue_time_seconds", "Waiting for a slot.", |metrics| {
        &metrics.queue
    }),
    ("request_prefill_time_seconds", "Reading the prompt.", |metrics| {
        &metrics.prefill
    }),
    (
        "request_decode_time_seconds",
        "From the first token to the last.",
        |metrics| &metrics.decode,
    ),
    (
        "cancel_latency_seconds",
        "From a caller's leaving to its request being gone.",
        |metrics| &metrics.cancel,
    ),
    ("step_seconds", "Steps of the engine.", |metrics| &metrics.step),
];

fn gauges(family: &mut Family<'_>) {
    family.values(
        ("model_loaded", "gauge", "Whether the model is in memory."),
        |listed| vec![(String::new(), f64::from(u8::from(listed.model.is_some())))],
    );
    let load = |read: fn(&engine::engine::Load) -> f64| {
        move |listed: &Listed| {
            let value = listed.model.as_ref().map(|model| read(&model.engine.load()));
            value.map(|value| (String::new(), value)).into_iter().collect()
        }
    };
    family.values(
        ("num_requests_running", "gauge", "Requests in steps."),
        load(|load| load.running as f64),
    );
    family.values(
        ("num_requests_waiting", "gauge", "Requests that wait for a slot."),
        load(|load| load.waiting as f64),
    );
    family.values(
        (
            "expected_wait_seconds",
            "gauge",
            "How long a request that comes now will wait.",
        ),
        load(|load| load.expected_wait_ms as f64 / 1e3),
    );
    let used = |load: &engine::engine::Load| load.blocks_used as f64 / load.blocks_total.max(1) as f64;
    family.values(
        (
            "kv_cache_usage_perc",
            "gauge",
            "Share of the cache's blocks that requests hold; 1 is all.",
        ),
        load(used),
    );
    family.values(
        (
            "kv_blocks_used",
            "gauge",
            "Blocks of the cache that requests hold.",
        ),
        load(|load| load.blocks_used as f64),
    );
    family.values(
        ("kv_blocks", "gauge", "Blocks of the cache."),
        load(|load| load.blocks_total as f64),
    );
}

type ReadCounter = fn(&engine::engine::Metrics) -> &AtomicU64;

const COUNTERS: [(&str, &str, ReadCounter); 10] = [
    (
        "prefix_cache_queries_total",
        "Prompt tokens that were looked for in the cache.",
        |metrics| &metrics.prefix_queries,
    ),
    (
        "prefix_cache_hits_total",
        "Prompt tokens that were found there.",
        |metrics| &metrics.prefix_hits,
    ),
    (
        "num_preemptions_total",
        "Requests that gave their blocks back to be computed again.",
        |metrics| &metrics.preempted,
    ),
    (
        "prompt_tokens_total",
        "Prompt tokens of requests that got a token.",
        |metrics| &metrics.prompt_tokens,
    ),
    ("generation_tokens_total", "Tokens produced.", |metrics| {
        &metrics.output_tokens
    }),
    (
        "request_failures_total",
        "Answers that could not go on.",
        |metrics| &metrics.failed,
    ),
    (
        "spec_decode_num_draft_tokens_total",
        "Tokens that were guessed.",
        |metrics| &metrics.guessed,
    ),
    (
        "spec_decode_num_accepted_tokens_total",
        "Guesses that were right.",
        |metrics| &metrics.guessed_right,
    ),
    ("steps_total", "Steps of the engine.", |metrics| &metrics.steps),
    (
        "aborted_steps_total",
        "Times that a step was stopped between layers: nobody wanted it any more, or it was in the background and somebody came.",
        |metrics| &metrics.aborted_steps,
    ),
];

fn counters(family: &mut Family<'_>) {
    let labelled = |pairs: &[(&str, &AtomicU64)]| {
        let one = |(label, counter): &(&str, &AtomicU64)| {
            (format!(",{label}"), counter.load(Ordering::Relaxed) as f64)
        };
        pairs.iter().map(one).collect::<Vec<_>>()
    };
    family.values(
        ("request_success_total", "counter", "Answers that came to an end."),
        |listed| {
            listed.model.as_ref().map_or_else(Vec::new, |model| {
                let metrics = model.engine.metrics();
                labelled(&[
                    ("finished_reason=\"stop\"", &metrics.finished_stop),
                    ("finished_reason=\"length\"", &metrics.finished_length),
                ])
            })
        },
    );
    family.values(
        (
            "cancelled_total",
            "counter",
            "Requests whose callers left, by what they were at.",
        ),
        |listed| {
            listed.model.as_ref().map_or_else(Vec::new, |model| {
                let metrics = model.engine.metrics();
                labelled(&[
                    ("phase=\"queued\"", &metrics.cancelled_queued),
                    ("phase=\"prefill\"", &metrics.cancelled_prefill),
                    ("phase=\"decode\"", &metrics.cancelled_decode),
                ])
            })
        },
    );
    for (name, help, read) in COUNTERS {
        family.values((name, "counter", help), |listed| {
            let value = listed
                .model
                .as_ref()
                .map(|model| read(model.engine.metrics()).load(Ordering::Relaxed) as f64);
            value.map(|value| (String::new(), value)).into_iter().collect()
        });
    }
}

/// Time and money of the machine, with what nobody used apart.
fn costs(family: &mut Family<'_>, nanodollars_per_hour: u64) {
    let uses = |listed: &Listed| -> Vec<(String, f64)> {
        let Some(model) = &listed.model else {
            return Vec::new();
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let metrics = model.engine.metrics();
        let (busy, background) = (read(&metrics.busy_us), read(&metrics.background_us));
        let idle = (model.engine.uptime().as_micros() as f64 - busy).max(0.0);
        [
            ("foreground", busy - background),
            ("background", background),
            ("idle", idle),
        ]
        .map(|(name, us)| (format!(",use=\"{name}\""), us))
        .into()
    };
    family.values(
        (
            "engine_seconds_total",
            "counter",
            "Time since the model was loaded, by what it was used for.",
        ),
        |listed| {
            uses(listed)
                .into_iter()
                .map(|(labels, us)| (labels, us / 1e6))
                .collect()
        },
    );
    family.values(
        (
            "cost_nanodollars_total",
            "counter",
            "The same at the configured price of the machine.",
        ),
        |listed| {
            let priced = |(labels, us): (String, f64)| (labels, cost(us, nanodollars_per_hour) as f64);
            uses(listed).into_iter().map(priced).collect()
        },
    );
}
