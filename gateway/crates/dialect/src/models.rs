//! The list of models, in both shapes.

use bytes::Bytes;
use exchange::Dialect;
use serde_json::{Value, json};

/// One model a caller may name.
#[derive(Clone, Copy, Debug)]
pub struct ModelEntry<'a> {
    pub id: &'a str,
    pub owned_by: &'a str,
    pub created_unix_s: i64,
}

/// The body of `GET /v1/models`.
pub fn model_list(dialect: Dialect, models: &[ModelEntry<'_>]) -> Bytes {
    let entries: Vec<Value> = models
        .iter()
        .map(|model| match dialect {
            Dialect::Anthropic => json!({ "type": "model", "id": model.id, "display_name": model.id,
                "created_at": rfc3339(model.created_unix_s) }),
            _ => json!({ "id": model.id, "object": "model", "created": model.created_unix_s, "owned_by": model.owned_by }),
        })
        .collect();
    let list = match dialect {
        Dialect::Anthropic => {
            let (first, last) = (
                models.first().map(|model| model.id),
                models.last().map(|model| model.id),
            );
            json!({ "data": entries, "has_more": false, "first_id": first, "last_id": last })
        }
        _ => json!({ "object": "list", "data": entries }),
    };
    list.to_string().into()
}

/// The moment in UTC, by the calendar of days since the epoch (Hinnant's `civil_from_days`).
fn rfc3339(unix_s: i64) -> String {
    let (days, second) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400));
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months count from March, so that the leap day is the last of its year.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_spelled_as_the_calendar_has_them() {
        for (unix_s, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(unix_s), expected);
        }
    }

    #[test]
    fn both_lists_have_the_shape_the_sdks_read() {
        let models = [
            ModelEntry {
                id: "a",
                owned_by: "acme",
                created_unix_s: 5,
            },
            ModelEntry {
                id: "b",
                owned_by: "acme",
                created_unix_s: 6,
            },
        ];
        let list = |dialect| serde_json::from_slice::<Value>(&model_list(dialect, &models)).unwrap();
        let openai = list(Dialect::OpenaiChat);
        assert_eq!(
            openai["data"][1],
            json!({ "id": "b", "object": "model", "created": 6, "owned_by": "acme" })
        );
        let anthropic = list(Dialect::Anthropic);
        assert_eq!(
            (
                &anthropic["first_id"],
                &anthropic["last_id"],
                &anthropic["has_more"]
            ),
            (&json!("a"), &json!("b"), &json!(false))
        );
        assert_eq!(anthropic["data"][0]["created_at"], "1970-01-01T00:00:05Z");
    }
}
