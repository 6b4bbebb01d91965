//! `tollgate audit`.

use super::{Access, Column, Desk, Listing, text};
use serde_json::Value;
use std::io::Write;

const COLUMNS: [Column; 6] = [
    ("at", |entry| text(&entry["at"])),
    ("who", |entry| text(&entry["actor"])),
    ("what", |entry| text(&entry["subject"])),
    ("why", |entry| text(&entry["reason"])),
    ("before", changed_from),
    ("after", changed_to),
];

/// What differs, of one of both sides.
fn difference(own: &Value, other: &Value) -> String {
    let Some(fields) = own.as_object() else {
        return "-".to_owned();
    };
    let differing = fields
        .iter()
        .filter(|(name, value)| &other[name.as_str()] != *value);
    let shown: Vec<String> = differing.map(|(name, value)| format!("{name}={value}")).collect();
    shown.join(" ")
}

fn changed_from(entry: &Value) -> String {
    difference(&entry["before"], &entry["after"])
}

fn changed_to(entry: &Value) -> String {
    difference(&entry["after"], &entry["before"])
}

pub(in crate::cli) fn run(listing: &Listing, access: Access, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut desk = Desk::new(access, out)?;
    let entries = desk.list("audit", listing)?;
    desk.show(&entries, &COLUMNS)
}
