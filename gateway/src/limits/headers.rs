//! What a caller is told of its limits, in the headers that the providers' own SDKs and users know.

use exchange::Dialect;
use limits::{Left, Standing};
use pingora_http::ResponseHeader;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The names for one rate.
struct Names {
    limit: &'static str,
    remaining: &'static str,
    reset: &'static str,
}

macro_rules! names {
    ($rate:literal) => {
        [
            Names {
                limit: concat!("x-ratelimit-limit-", $rate),
                remaining: concat!("x-ratelimit-remaining-", $rate),
                reset: concat!("x-ratelimit-reset-", $rate),
            },
            Names {
                limit: concat!("anthropic-ratelimit-", $rate, "-limit"),
                remaining: concat!("anthropic-ratelimit-", $rate, "-remaining"),
                reset: concat!("anthropic-ratelimit-", $rate, "-reset"),
            },
        ]
    };
}

const REQUESTS: [Names; 2] = names!("requests");
const TOKENS: [Names; 2] = names!("tokens");

/// Adds `x-ratelimit-*`, and for callers that speak Anthropic's dialect its own names too.
pub(crate) fn write(head: &mut ResponseHeader, standing: &Standing, dialect: Dialect, now_unix_us: i64) {
    for (left, [common, anthropic]) in [(standing.requests, &REQUESTS), (standing.tokens, &TOKENS)] {
        let Some(left) = left else {
            continue;
        };
        put(head, common, left, &duration(left.reset_us));
        if dialect == Dialect::Anthropic {
            put(head, anthropic, left, &moment(now_unix_us, left.reset_us));
        }
    }
}

fn put(head: &mut ResponseHeader, names: &Names, left: Left, reset: &str) {
    // Digits and letters are valid values.
    let _ = head.insert_header(names.limit, left.limit);
    let _ = head.insert_header(names.remaining, left.remaining);
    let _ = head.insert_header(names.reset, reset);
}

/// As OpenAI writes it: `250ms`, `1.5s`, `6m0s`.
fn duration(us: u64) -> String {
    let ms = us.div_ceil(1_000);
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 if ms.is_multiple_of(1_000) => format!("{}s", ms / 1_000),
        1_000..60_000 => format!("{}.{:03}s", ms / 1_000, ms % 1_000),
        _ => format!("{}m{}s", ms / 60_000, (ms % 60_000).div_ceil(1_000)),
    }
}

/// As Anthropic writes it: a moment, to the second.
fn moment(now_unix_us: i64, us: u64) -> String {
    let at = now_unix_us.saturating_add_unsigned(us).div_euclid(1_000_000) + 1;
    let at = OffsetDateTime::from_unix_timestamp(at).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    at.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_say_the_same() {
        let standing = Standing {
            requests: Some(Left {
                limit: 60,
                remaining: 12,
                reset_us: 1_500_000,
            }),
            tokens: None,
        };
        let shown = |dialect| {
            let mut head = ResponseHeader::build(200, None).unwrap();
            write(&mut head, &standing, dialect, 1_795_500_000_000_000);
            let lines = head
                .headers
                .iter()
                .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
            lines.collect::<Vec<_>>()
        };
        let openai = shown(Dialect::OpenaiChat);
        assert_eq!(
            openai,
            [
                "x-ratelimit-limit-requests: 60",
                "x-ratelimit-remaining-requests: 12",
                "x-ratelimit-reset-requests: 1.500s"
            ]
        );
        let anthropic = shown(Dialect::Anthropic);
        assert!(
            anthropic.contains(&"anthropic-ratelimit-requests-remaining: 12".to_owned()),
            "{anthropic:?}"
        );
        assert!(
            anthropic.contains(&"anthropic-ratelimit-requests-reset: 2026-11-24T06:00:02Z".to_owned()),
            "{anthropic:?}"
        );
    }

    #[test]
    fn durations_are_written_as_openai_does() {
        for (us, shown) in [
            (0, "0ms"),
            (1, "1ms"),
            (250_000, "250ms"),
            (1_000_000, "1s"),
            (61_000_000, "1m1s"),
            (360_000_000, "6m0s"),
        ] {
            assert_eq!(duration(us), shown);
        }
    }
}
