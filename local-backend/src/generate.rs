//! From a request that is understood to an answer on its way: hands the parts to the engine, sorts what comes back into
//! pieces, and adds up what it cost. Dropping a generation cancels what is left of it.

use crate::api::{Answer, Ask, Call, Ended, Part, Summary, Writer};
use crate::registry::Model;
use crate::tools::{Parser, Piece};
use engine::engine::{Counts, Event, SubmitError, Ticket, TokenLogprob};
use engine::think::Channel;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Events that may wait for a slow reader; beyond it the reader counts as gone.
const EVENTS: usize = 4096;
/// A stream that has nothing to say says so this often: what waits in a queue, reads a long prompt or may become a call is
/// not to be taken for a connection that is dead.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What a generation must know of its server.
#[derive(Clone)]
pub(crate) struct Context {
    /// What an hour of the machine costs.
    pub(crate) nanodollars_per_hour: u64,
    /// Turns true when running answers must end.
    pub(crate) ending: watch::Receiver<bool>,
    pub(crate) tokenize_ms: f64,
}

/// What a machine's time costs, rounded up.
pub(crate) fn cost(busy_us: f64, nanodollars_per_hour: u64) -> u64 {
    (busy_us * nanodollars_per_hour as f64 / 3.6e9).ceil() as u64
}

/// An answer on its way.
pub(crate) struct Generation {
    receiver: mpsc::Receiver<(usize, Event)>,
    /// They cancel when they are dropped.
    _tickets: Vec<Ticket>,
    /// Held so that the model is not unloaded.
    _model: Arc<Model>,
    context: Context,
    n: usize,
    parsers: Vec<Parser>,
    ended: Vec<Option<Ended>>,
    begun: bool,
}

/// What an event came to.
enum Happened {
    Pieces(Vec<Piece>, Vec<TokenLogprob>),
    Ended(Vec<Piece>, Ended),
    Broken(String),
}

impl Generation {
    /// Hands all parts of `ask` to the engine.
    ///
    /// # Errors
    /// The engine takes no more; nothing of the request is left there.
    pub(crate) fn start(model: &Arc<Model>, ask: Ask, context: Context) -> Result<Self, SubmitError> {
        let (sender, receiver) = mpsc::channel(EVENTS);
        let (count, tools, n) = (ask.requests.len(), ask.tools, ask.n);
        let mut tickets = Vec::with_capacity(count);
        for (choice, request) in ask.requests.into_iter().enumerate() {
            let sender = sender.clone();
            let sink = Box::new(move |event| sender.try_send((choice, event)).is_ok());
            tickets.push(model.engine.submit(request, sink)?);
        }
        Ok(Self {
            receiver,
            _tickets: tickets,
            _model: model.clone(),
            context,
            n,
            parsers: (0..count).map(|_| Parser::new(tools.clone())).collect(),
            ended: vec![None; count],
            begun: false,
        })
    }

    /// The next event; one that says why, where there is none.
    async fn next(&mut self) -> (usize, Event) {
        let broken = |why: &str| (0, Event::Failed(why.into()));
        tokio::select! {
            event = self.receiver.recv() => event.unwrap_or_else(|| broken("the engine gave this answer up: it stopped, or the reader was too slow")),
            _ = self.context.ending.wait_for(|ending| *ending) => broken("the server is shutting down"),
        }
    }

    fn sort(&mut self, choice: usize, event: Event) -> Happened {
        let parser = &mut self.parsers[choice];
        match event {
            Event::Text {
                channel,
                text,
                logprobs,
            } => {
                let mut pieces = match channel {
                    Channel::Reasoning => vec![Piece::Reasoning(text)],
                    Channel::Content => parser.push(&text),
                };
                if pieces.is_empty() && !logprobs.is_empty() {
                    pieces.push(Piece::Text(String::new()));
                }
                Happened::Pieces(pieces, logprobs)
            }
            Event::Finished {
                finish,
                counts,
                timings,
            } => {
                let ended = Ended {
                    finish,
                    counts,
                    timings,
                };
                self.ended[choice] = Some(ended);
                Happened::Ended(parser.finish(), ended)
            }
            Event::Failed(why) => Happened::Broken(why),
        }
    }

    fn is_over(&self) -> bool {
        self.ended.iter().all(Option::is_some)
    }

    fn summary(&self) -> Summary {
        let ended = || self.ended.iter().flatten();
        let prompts = || ended().step_by(self.n.max(1));
        let counts = Counts {
            prompt: prompts().map(|ended| ended.counts.prompt).sum(),
            cached: prompts().map(|ended| ended.counts.cached).sum(),
            output: ended().map(|ended| ended.counts.output).sum(),
            reasoning: ended().map(|ended| ended.counts.reasoning).sum(),
        };
        let busy_us: f64 = ended().map(|ended| ended.timings.busy_ms * 1e3).sum();
        Summary {
            counts,
            timings: ended().next().map(|ended| ended.timings).unwrap_or_default(),
            tokenize_ms: self.context.tokenize_ms,
            nanodollars: cost(busy_us, self.context.nanodollars_per_hour),
        }
    }

    /// The next piece of the stream, with everything that is there already; and whether it was the last.
    pub(crate) async fn stream(&mut self, writer: &mut dyn Writer) -> (String, bool) {
        let mut out = String::new();
        if !std::mem::replace(&mut self.begun, true) {
            out.push_str(&writer.begin());
        }
        let mut next = match tokio::time::timeout(KEEP_ALIVE, self.next()).await {
            Ok(event) => Some(event),
            Err(_) => return (out + ": still here\n\n", false),
        };
        while let Some((choice, event)) = next {
            match self.sort(choice, event) {
                Happened::Pieces(pieces, logprobs) => write(writer, &mut out, choice, (&pieces, &logprobs)),
                Happened::Ended(pieces, ended) => {
                    write(writer, &mut out, choice, (&pieces, &[]));
                    out.push_str(&writer.end_choice(choice, &ended));
                }
                Happened::Broken(why) => return (out + &writer.broken(&why), true),
            }
            if self.is_over() {
                return (out + &writer.end(&self.summary()), true);
            }
            next = self.receiver.try_recv().ok();
        }
        (out, false)
    }

    /// The whole answer, with what it came to.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn whole(mut self, writer: &mut dyn Writer) -> Result<(Value, Summary), String> {
        let mut answers = vec![Answer::default(); self.ended.len()];
        while !self.is_over() {
            let (choice, event) = self.next().await;
            let answer = &mut answers[choice];
            match self.sort(choice, event) {
                Happened::Pieces(pieces, logprobs) => {
                    pieces.into_iter().for_each(|piece| add(answer, piece));
                    answer.logprobs.extend(logprobs);
                }
                Happened::Ended(pieces, ended) => {
                    pieces.into_iter().for_each(|piece| add(answer, piece));
                    answer.ended = Some(ended);
                }
                Happened::Broken(why) => return Err(why),
            }
        }
        let summary = self.summary();
        Ok((writer.whole(&answers, &summary), summary))
    }
}

/// Likelihoods go with the first piece.
fn write(
    writer: &mut dyn Writer,
    out: &mut String,
    choice: usize,
    (pieces, logprobs): (&[Piece], &[TokenLogprob]),
) {
    for (at, piece) in pieces.iter().enumerate() {
        let logprobs = if at == 0 { logprobs } else { &[] };
        out.push_str(&writer.part(&Part {
            choice,
            piece,
            logprobs,
        }));
    }
}

fn add(answer: &mut Answer, piece: Piece) {
    match piece {
        Piece::Text(text) => answer.content.push_str(&text),
        Piece::Reasoning(text) => answer.reasoning.push_str(&text),
        Piece::Call { name, arguments, .. } => answer.calls.push(Call { name, arguments }),
    }
}

#[cfg(test)]
mod tests {
    use super::cost;

    #[test]
    fn time_costs_what_the_hour_costs() {
        // 36 ms of a machine of one dollar an hour are ten millionths of it.
        assert_eq!(cost(36_000.0, 1_000_000_000), 10_000);
        assert_eq!(cost(1.0, 1), 1, "rounded up");
        assert_eq!(cost(5e9, 0), 0);
    }
}
