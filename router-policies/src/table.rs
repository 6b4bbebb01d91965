//! Plain tables for people: columns as wide as their widest cell, numbers to the right.

/// Rows of cells under a head. Cells that begin with a digit, a sign or a dollar stand to the right.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let fill = " ".repeat(width.saturating_sub(cell.chars().count()));
            let is_number = cell
                .trim_start_matches(['-', '+', '$'])
                .starts_with(|c: char| c.is_ascii_digit());
            if is_number {
                line.push_str(&fill);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&fill);
            }
            line.push_str("  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
