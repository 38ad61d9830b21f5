//! Answers for people: fields as lines, lists of alike things as tables.

use serde_json::{Map, Value};

/// The text of an answer.
pub(crate) fn of(value: &Value) -> String {
    let mut text = String::new();
    put(&mut text, value, 0);
    text
}

fn put(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::Array(list) if list.is_empty() => *text += &format!("{indent}{name}: none\n"),
                    Value::Object(_) | Value::Array(_) => {
                        *text += &format!("{indent}{name}:\n");
                        put(text, field, depth + 1);
                    }
                    _ => *text += &format!("{indent}{name}: {}\n", word(field)),
                }
            }
        }
        Value::Array(list) => table(text, list, &indent),
        other => *text += &format!("{indent}{}\n", word(other)),
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::String(word) => word.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// Objects of the same fields as rows under a head; anything else line by line.
fn table(text: &mut String, list: &[Value], indent: &str) {
    let first: Option<&Map<String, Value>> = list.first().and_then(Value::as_object);
    let Some(first) = first else {
        list.iter().for_each(|value| *text += &format!("{indent}{}\n", word(value)));
        return;
    };
    let mut rows: Vec<Vec<String>> = vec![first.keys().cloned().collect()];
    for value in list {
        let cell = |name: &String| value.get(name).map_or_else(|| "-".to_owned(), word);
        rows.push(first.keys().map(cell).collect());
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..first.len()).map(width).collect();
    for row in &rows {
        let mut line = indent.to_owned();
        for (cell, width) in row.iter().zip(&widths) {
            line += cell;
            line += &" ".repeat(width + 2 - cell.chars().count());
        }
        *text += line.trim_end();
        text.push('\n');
    }
}
