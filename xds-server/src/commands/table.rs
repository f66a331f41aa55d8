//! Columns for people.

use std::fmt::Write as _;
use std::io::{self, Write};

/// Spaces between two columns.
const GAP: usize = 3;

/// Writes rows of cells below their titles, each column as wide as it must be.
pub(super) fn write<const N: usize>(
    out: &mut dyn Write,
    titles: [&str; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(titles[column].len()) + GAP
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let titles = titles.map(ToOwned::to_owned);
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            write!(line, "{cell:<width$}").expect("writing to a string cannot fail");
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// "12 s", "5 min", "3 h", "2 d".
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            ["1".to_owned(), "lång".to_owned(), "x".to_owned()],
            ["1000".to_owned(), "b".to_owned(), String::new()],
        ];
        let mut out = Vec::new();
        write(&mut out, ["N", "NAME", "Z"], &rows).expect("a vector takes all");
        let text = String::from_utf8(out).expect("text");
        assert_eq!(text, "N      NAME   Z\n1      lång   x\n1000   b\n");
    }
}
