//! Loading as a person sees it: how far it has come, on standard error. Owns the lines; refuses to know models.

use engine::model::Progress;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How often a terminal's line is written anew, and how often a log gets one.
const TERMINAL: Duration = Duration::from_millis(100);
const LOG: Duration = Duration::from_secs(2);

/// Does `load` and tells of it meanwhile; what takes no time is told of in one line.
pub(crate) fn told<T>(name: &str, progress: &Arc<Progress>, load: impl FnOnce() -> T) -> T {
    let is_terminal = std::io::stderr().is_terminal();
    let every = if is_terminal { TERMINAL } else { LOG };
    // Nothing is ever sent: that it is gone says that loading is over.
    let (done, is_done) = sync_channel::<()>(1);
    let (started, watched) = (Instant::now(), progress.clone());
    let loading = name.to_owned();
    let watcher = std::thread::spawn(move || {
        while is_done.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            say(&line(&loading, watched.share(), None), is_terminal);
        }
    });
    let loaded = load();
    drop(done);
    let _ = watcher.join();
    if progress.share() >= 1.0 {
        say(&line(name, 1.0, Some(started.elapsed())), is_terminal);
    }
    if is_terminal {
        let _ = writeln!(std::io::stderr());
    }
    loaded
}

fn line(name: &str, share: f64, took: Option<Duration>) -> String {
    match took {
        None => format!("loading {name}: {:.0} %", share * 100.0),
        Some(took) => format!("loaded {name} in {:.1} s", took.as_secs_f64()),
    }
}

/// A terminal's line takes the place of the one before.
fn say(line: &str, is_terminal: bool) {
    let mut out = std::io::stderr().lock();
    let _ = match is_terminal {
        true => write!(out, "\r\x1b[K{line}").and_then(|()| out.flush()),
        false => writeln!(out, "{line}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_how_far_it_is_and_how_long_it_took() {
        assert_eq!(line("m", 0.426, None), "loading m: 43 %");
        assert_eq!(
            line("m", 1.0, Some(Duration::from_millis(1240))),
            "loaded m in 1.2 s"
        );
        let progress = Arc::new(Progress::default());
        assert_eq!(
            told("m", &progress, || 7),
            7,
            "what it does is passed on, even if it did not load"
        );
    }
}
