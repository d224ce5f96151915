//! Rows under a heading.

use super::Width;

/// Columns of the narrowest terminal that tables are made for.
const WIDTH: usize = 80;
/// Between two columns.
const GAP: usize = 2;
/// What a column that gives way keeps at least.
const LEAST: usize = 8;

pub(crate) use self::Column::{End, Fixed, Name, Wide};

/// A column by its heading, and what becomes of its cells where there is no room for them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Column {
    /// States and numbers: a part of one would say something else. It keeps all of it.
    Fixed(&'static str),
    /// A name: its middle gives way, for names differ at either end.
    Name(&'static str),
    /// A path, an address or a sentence: its end says more than its beginning.
    End(&'static str),
    /// Shown where a table may become as wide as it takes, and nowhere else.
    Wide(&'static str),
}

impl Column {
    fn heading(self) -> &'static str {
        match self {
            Fixed(heading) | Name(heading) | End(heading) | Wide(heading) => heading,
        }
    }

    fn gives_way(self) -> bool {
        matches!(self, Name(_) | End(_))
    }

    /// A cell in so many columns.
    fn fit(self, cell: &str, room: usize) -> String {
        let length = cell.chars().count();
        if length <= room {
            return cell.to_owned();
        }
        let tail = match self {
            End(_) => room - 1,
            _ => (room - 1) / 2,
        };
        let head = cell.chars().take(room - 1 - tail);
        head.chain(std::iter::once('…')).chain(cell.chars().skip(length - tail)).collect()
    }
}

/// Rows under a heading.
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// The table as lines.
    pub(crate) fn render(&self, width: Width) -> String {
        let shown = |column: &Column| width == Width::Full || !matches!(column, Wide(_));
        let places: Vec<usize> = (0..self.columns.len()).filter(|&place| shown(&self.columns[place])).collect();
        let mut room: Vec<usize> = places.iter().map(|&place| self.widest(place)).collect();
        if width == Width::Narrow {
            self.make_room(&places, &mut room);
        }
        let heading: Vec<String> = self.columns.iter().map(|column| column.heading().to_owned()).collect();
        let lines = std::iter::once(&heading).chain(&self.rows);
        lines.map(|line| self.render_line(line, &places, &room)).collect()
    }

    fn widest(&self, place: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[place].chars().count());
        cells.chain([self.columns[place].heading().len()]).max().unwrap_or(0)
    }

    /// The widest of those that can gives way, until all fit or no one can any more.
    fn make_room(&self, places: &[usize], room: &mut [usize]) {
        let gaps = GAP * places.len().saturating_sub(1);
        while room.iter().sum::<usize>() + gaps > WIDTH {
            let least = |index: usize| self.columns[places[index]].heading().len().max(LEAST);
            let able = (0..room.len()).filter(|&i| self.columns[places[i]].gives_way() && room[i] > least(i));
            // Of equals the last one: names come first.
            let Some(widest) = able.max_by_key(|&index| room[index]) else { return };
            room[widest] -= 1;
        }
    }

    fn render_line(&self, cells: &[String], places: &[usize], room: &[usize]) -> String {
        let mut text = String::new();
        for (&place, &room) in places.iter().zip(room) {
            let cell = self.columns[place].fit(&cells[place], room);
            let length = cell.chars().count();
            text.push_str(&cell);
            text.extend(std::iter::repeat_n(' ', room.saturating_sub(length) + GAP));
        }
        format!("{}\n", text.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&[Name("NAME"), Fixed("SIZE")]);
        table.row(vec!["a-long-name".into(), "1 GiB".into()]);
        assert_eq!(table.render(Width::Narrow), "NAME         SIZE\na-long-name  1 GiB\n");
    }

    #[test]
    fn a_path_gives_way_and_keeps_its_end() {
        let mut table = Table::new(&[Name("NAME"), End("PATH")]);
        table.row(vec!["a".into(), format!("/{}/store.img", "x".repeat(100))]);
        let text = table.render(Width::Narrow);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.ends_with("/store.img\n"), "{text}");
        assert!(table.render(Width::Full).contains(&format!("/{}/store.img", "x".repeat(100))));
    }

    #[test]
    fn long_names_share_the_room_and_numbers_stay_whole() {
        let columns = [Name("NAME"), Name("STORE"), Fixed("STATE"), Fixed("SIZE"), Name("PARENT"), Wide("UUID")];
        let mut table = Table::new(&columns);
        let name = |letter: char| format!("first-{}-last", letter.to_string().repeat(52));
        let cells = [name('a'), name('b'), "deleting 42 %".into(), "1023.9 GiB".into(), name('c'), "u".repeat(36)];
        table.row(cells.to_vec());
        table.row(vec!["web".into(), "main".into(), "ready".into(), "1 GiB".into(), "-".into(), "v".repeat(36)]);
        let text = table.render(Width::Narrow);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        for whole in ["deleting 42 %", "1023.9 GiB", "web ", "first-aa", "aa-last", "cc-last"] {
            assert!(text.contains(whole), "{whole}\n{text}");
        }
        assert!(!text.contains("UUID"), "{text}");
        let wide = table.render(Width::Full);
        assert!(wide.contains(&name('b')) && wide.contains(&"u".repeat(36)), "{wide}");
    }

    #[test]
    fn a_cell_of_many_letters_is_cut_between_letters() {
        assert_eq!(Name("N").fit("grün-äpfel-öl", 8), "grün…-öl");
        assert_eq!(End("E").fit("grün-äpfel-öl", 8), "…pfel-öl");
    }
}
