//! Tables that fit a terminal of 80 columns, and JSON.

use serde::Serialize;

/// Columns of the narrowest terminal that tables are made for.
const WIDTH: usize = 80;
/// Between two columns.
const GAP: usize = 2;

/// Rows under a heading.
pub(crate) struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(heading: &[&'static str]) -> Self {
        Self { heading: heading.to_vec(), rows: Vec::new() }
    }

    /// Adds a row with as many cells as the heading.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.heading.len());
        self.rows.push(cells);
    }

    /// The table as lines. When it is too wide, the last column gives way, and keeps its end: it holds a path or an
    /// address, whose end says more.
    pub(crate) fn render(&self) -> String {
        let heading = self.heading.iter().map(|cell| (*cell).to_owned()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&heading).chain(&self.rows).collect();
        let widths: Vec<usize> = (0..self.heading.len())
            .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
            .collect();
        let before_last: usize = widths[..widths.len() - 1].iter().map(|width| width + GAP).sum();
        let room = WIDTH.saturating_sub(before_last).max(8);
        lines.iter().map(|line| render_line(line, &widths, room)).collect()
    }
}

fn render_line(cells: &[String], widths: &[usize], room: usize) -> String {
    let mut text = String::new();
    for (column, cell) in cells.iter().enumerate() {
        if column + 1 == cells.len() {
            text.push_str(&keep_end(cell, room));
        } else {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', widths[column] + GAP - cell.chars().count()));
        }
    }
    format!("{}\n", text.trim_end())
}

fn keep_end(cell: &str, room: usize) -> String {
    let length = cell.chars().count();
    if length <= room {
        return cell.to_owned();
    }
    std::iter::once('…').chain(cell.chars().skip(length - room + 1)).collect()
}

/// Prints a value as JSON, for programs.
pub(crate) fn print_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAME", "SIZE"]);
        table.row(vec!["a-long-name".into(), "1 GiB".into()]);
        assert_eq!(table.render(), "NAME         SIZE\na-long-name  1 GiB\n");
    }

    #[test]
    fn the_last_column_gives_way_and_keeps_its_end() {
        let mut table = Table::new(&["NAME", "PATH"]);
        table.row(vec!["a".into(), format!("/{}/store.img", "x".repeat(100))]);
        let text = table.render();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.ends_with("/store.img\n"), "{text}");
    }
}
