//! Tables for people: columns as wide as what is in them.

use std::io::{self, Write};

/// Rows of `N` columns below a line of names.
#[derive(Debug)]
pub struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table with these names and no rows.
    pub fn new(names: [&str; N]) -> Self {
        let rows = vec![names.map(str::to_owned)];
        Self { rows }
    }

    /// Adds a row.
    pub fn push(&mut self, row: [String; N]) {
        self.rows.push(row);
    }

    /// Writes the table, each line after `indent` blanks.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn write(&self, indent: usize, into: &mut impl Write) -> io::Result<()> {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for (width, cell) in widths.iter().zip(row) {
                line.push_str(&format!("{cell:width$}  "));
            }
            writeln!(into, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["ID", "NAME"]);
        table.push(["1".to_owned(), "somewhat long".to_owned()]);
        table.push(["1000".to_owned(), String::new()]);
        let mut text = Vec::new();
        table.write(2, &mut text).expect("memory takes it");
        let text = String::from_utf8(text).expect("UTF-8");
        assert_eq!(text, "  ID    NAME\n  1     somewhat long\n  1000\n");
    }
}
