//! FOCUS rows as CSV and as Parquet: the same cells, in the same order.

use super::{COLUMNS, Cell, Focus, Kind};
use anyhow::Context;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::{ByteArray, FixedLenByteArray};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::fmt::Write as _;
use std::io::Write;
use std::sync::Arc;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Rows per group of a Parquet file.
const GROUP: usize = 100_000;

/// With a header; null is an empty field.
pub(crate) fn write_csv(focus: &Focus, out: impl Write) -> anyhow::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(COLUMNS.iter().map(|column| column.name))?;
    for row in focus.rows() {
        let cells: Vec<String> = row.iter().map(shown).collect::<anyhow::Result<_>>()?;
        writer.write_record(cells)?;
    }
    writer.flush()?;
    Ok(())
}

fn shown(cell: &Cell) -> anyhow::Result<String> {
    Ok(match cell {
        Cell::Null => String::new(),
        Cell::Text(text) => text.clone(),
        Cell::Decimal(number) => decimal(*number),
        Cell::Moment(us) => {
            OffsetDateTime::from_unix_timestamp(us.div_euclid(1_000_000))?.format(&Rfc3339)?
        }
    })
}

/// Twelve decimals without idle zeros and without an exponent.
fn decimal(number: i128) -> String {
    let digits = number.unsigned_abs();
    let (whole, fraction) = (digits / 1_000_000_000_000, digits % 1_000_000_000_000);
    let sign = if number < 0 { "-" } else { "" };
    let mut text = format!("{sign}{whole}");
    if fraction > 0 {
        let _ = write!(text, ".{fraction:012}");
        text.truncate(text.trim_end_matches('0').len());
    }
    text
}

/// Decimals are DECIMAL(38, 12), moments TIMESTAMP in UTC, texts UTF-8.
pub(crate) fn write_parquet(focus: &Focus, out: impl Write + Send) -> anyhow::Result<()> {
    let schema = Arc::new(parse_message_type(&schema()).context("the schema of the Parquet file")?);
    let mut writer = SerializedFileWriter::new(out, schema, Arc::new(WriterProperties::builder().build()))?;
    let mut rows = focus.rows().peekable();
    while rows.peek().is_some() {
        let group: Vec<Vec<Cell>> = rows.by_ref().take(GROUP).collect();
        let mut columns = writer.next_row_group()?;
        let mut at = 0;
        while let Some(mut column) = columns.next_column()? {
            let cells = group.iter().map(|row| &row[at]);
            match column.untyped() {
                ColumnWriter::ByteArrayColumnWriter(column) => {
                    let (values, levels) = split(cells, COLUMNS[at].nullable, |cell| match cell {
                        Cell::Text(text) => Some(ByteArray::from(text.as_str())),
                        _ => None,
                    });
                    column.write_batch(&values, levels.as_deref(), None)?;
                }
                ColumnWriter::FixedLenByteArrayColumnWriter(column) => {
                    let (values, levels) = split(cells, COLUMNS[at].nullable, |cell| match cell {
                        Cell::Decimal(number) => Some(FixedLenByteArray::from(number.to_be_bytes().to_vec())),
                        _ => None,
                    });
                    column.write_batch(&values, levels.as_deref(), None)?;
                }
                ColumnWriter::Int64ColumnWriter(column) => {
                    let (values, levels) = split(cells, COLUMNS[at].nullable, |cell| match cell {
                        Cell::Moment(us) => Some(*us),
                        _ => None,
                    });
                    column.write_batch(&values, levels.as_deref(), None)?;
                }
                _ => anyhow::bail!("{} is of a kind that is not written", COLUMNS[at].name),
            }
            column.close()?;
            at += 1;
        }
        columns.close()?;
    }
    writer.close()?;
    Ok(())
}

/// A column's values that are there, and for one that may be null, which are.
fn split<'a, T>(
    cells: impl Iterator<Item = &'a Cell>,
    nullable: bool,
    value: impl Fn(&Cell) -> Option<T>,
) -> (Vec<T>, Option<Vec<i16>>) {
    let cells: Vec<Option<T>> = cells.map(value).collect();
    let levels = nullable.then(|| cells.iter().map(|cell| i16::from(cell.is_some())).collect());
    (cells.into_iter().flatten().collect(), levels)
}

fn schema() -> String {
    let mut schema = String::from("message focus {\n");
    for column in COLUMNS {
        let need = if column.nullable { "OPTIONAL" } else { "REQUIRED" };
        let name = column.name;
        let _ = match column.kind {
            Kind::Text => writeln!(schema, "{need} BYTE_ARRAY {name} (UTF8);"),
            Kind::Decimal => writeln!(
                schema,
                "{need} FIXED_LEN_BYTE_ARRAY (16) {name} (DECIMAL(38,12));"
            ),
            Kind::Moment => writeln!(schema, "{need} INT64 {name} (TIMESTAMP(MICROS,true));"),
        };
    }
    schema.push('}');
    schema
}
