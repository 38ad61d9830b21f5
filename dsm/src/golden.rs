//! Golden tables: text files of rows, each a step and what must come of it.
//!
//! A line is `left -> right`; `#` starts a comment, empty lines separate. The test says what a left side means and prints
//! what it did; a difference names file and line.

/// Runs every row of `table` through `step` and compares what it returns with the right side of the row.
pub fn check(file: &str, table: &str, mut step: impl FnMut(&str) -> String) {
    let mut rows = 0;
    for (line_number, line) in (1..).zip(table.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (left, right) =
            line.split_once("->").unwrap_or_else(|| panic!("{file}:{line_number}: no `->` in {line:?}"));
        let normal = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let (expected, got) = (normal(right), normal(&step(left.trim())));
        assert!(
            got == expected,
            "{file}:{line_number}: {}\n expected {expected}\n      got {got}",
            left.trim()
        );
        rows += 1;
    }
    assert!(rows > 0, "{file} has no row");
}
