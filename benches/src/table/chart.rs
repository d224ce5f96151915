//! The rows with a target as a picture: a bar for each, as long as what was reached of it.

use std::fmt::Write as _;

use crate::report::Row;

const LINE: usize = 18;
const LABELS: usize = 520;
const BAR: f64 = 160.0;
/// Bars that are longer are cut.
const LONGEST: f64 = 2.0;

/// An SVG. The line down the middle is where targets are met: longer is better.
pub(super) fn draw(rows: &[Row]) -> String {
    let bars: Vec<_> = rows.iter().filter_map(|row| Some((row, row.reached()?))).collect();
    let (width, height) = (LABELS + (BAR * LONGEST) as usize + 90, LINE * (bars.len() + 2));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    // Writing to a string cannot fail.
    for (index, (row, reached)) in bars.iter().enumerate() {
        let y = LINE * (index + 1);
        let color = if row.met == Some(true) { "#4a8f5a" } else { "#c4553b" };
        let length = (reached.clamp(0.0, LONGEST) * BAR).max(1.0);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text><rect x=\"{LABELS}\" y=\"{y}\" width=\"{length:.0}\" \
             height=\"{}\" fill=\"{color}\"/><text x=\"{:.0}\" y=\"{}\">{:.0} %</text>",
            LABELS - 8,
            y + LINE - 6,
            escaped(&row.case),
            LINE - 4,
            LABELS as f64 + length + 6.0,
            y + LINE - 6,
            reached * 100.0,
        );
    }
    let middle = LABELS as f64 + BAR;
    let _ = writeln!(
        svg,
        "<line x1=\"{middle}\" y1=\"0\" x2=\"{middle}\" y2=\"{height}\" stroke=\"#333\" stroke-dasharray=\"3 3\"/>\n</svg>"
    );
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Target;

    #[test]
    fn rows_with_a_target_have_a_bar() {
        let rows = [
            Row::compared("a < b", "IOPS", 90.0, 100.0).target(Target::RatioAtLeast(0.8)),
            Row::compared("slow", "µs", 30.0, 10.0).target(Target::RatioAtMost(2.0)),
            Row::compared("without a target", "µs", 30.0, 10.0),
        ];
        let svg = draw(&rows);
        assert!(svg.contains("a &lt; b") && svg.contains(">112 %<") && svg.contains(">67 %<"), "{svg}");
        assert_eq!(svg.matches("fill=\"#c4553b\"").count(), 1);
        assert!(!svg.contains("without a target"));
    }
}
