//! What a command prints: text for people, or with `--json` one object for programs.
//!
//! The object has DAOS's form: `{"response": …, "error": null, "status": 0}`. On failure `response` is null, `error` says
//! what happened and what to do, and `status` is the code. Errors for people go to standard error, in one line.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use daos::{DaosError, copy::CopyError};
use daos_xstream::rpc::Status;
use serde::Serialize;

/// The outcome of a command that worked.
pub struct Answer {
    /// For programs.
    pub response: serde_json::Value,
    /// For people; may be empty.
    pub text: String,
}

impl Answer {
    /// An answer of `response` and its text.
    pub fn new(response: impl Serialize, text: impl Into<String>) -> Self {
        let response = serde_json::to_value(response).expect("answers are plain data");
        Self { response, text: text.into() }
    }
}

/// A command that did not work.
#[derive(Debug)]
pub struct Failure {
    /// Stable number of the error; errno-compatible where one exists.
    pub status: i32,
    /// What happened and what to do, in one line.
    pub message: String,
}

impl Failure {
    /// A failure with what to do about failures of this kind.
    fn with_remedy(status: i32, message: String) -> Self {
        match remedy(Status(status)) {
            // Some messages say it themselves.
            Some(remedy) if !message.contains(';') => Self::new(status, format!("{message}; {remedy}")),
            _ => Self::new(status, message),
        }
    }

    /// A failure with an errno, or a number of our own, and what to do.
    pub fn new(status: i32, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl From<DaosError> for Failure {
    fn from(error: DaosError) -> Self {
        Self::with_remedy(error.status(), error.to_string())
    }
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        Self::with_remedy(error.errno(), error.to_string())
    }
}

/// What to do about an error of this kind, where the error itself does not say it.
fn remedy(status: Status) -> Option<&'static str> {
    Some(match status {
        Status::NOT_PERMITTED | Status::ACCESS_DENIED => {
            "ask the owner of the pool or container for access, or work as another user"
        }
        Status::MEDIA_FAILED | Status::INTERNAL => "the engine's log says more",
        Status::BUSY | Status::TRY_AGAIN | Status::NO_MEMORY | Status::BAD_HANDLE | Status::STALE_HANDLE => {
            "run the command again"
        }
        Status::NO_SPACE => "free some space, or use a larger pool",
        Status::SHUTTING_DOWN | Status::TIMED_OUT => {
            "see whether the engine runs: dmg system query, or its log"
        }
        Status::BAD_CHECKSUM | Status::CORRUPT => {
            "what is stored is damaged: an older --epoch or a copy may help"
        }
        Status::BAD_PROTOCOL => "use programs of the engine's version",
        Status::INTERRUPTED => "nothing is committed: run the command again",
        _ => return None,
    })
}

/// Writes to standard output, all of it. Who has closed it, as `head` does, has seen what it wanted: the program ends at once and
/// without a word, as one that SIGPIPE ends would. Everything else is an error to be told.
pub fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::new(QUIET, "")),
        Err(error) => Err(Failure::new(
            error.raw_os_error().unwrap_or(5),
            format!("standard output: {error}; not all of it was written"),
        )),
    }
}

/// The status of a failure that nobody is told of: nobody listens.
const QUIET: i32 = 32;
/// The exit code that shells give a program that SIGPIPE has ended.
const QUIET_EXIT: u8 = 141;

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(error.raw_os_error().unwrap_or(5), error.to_string())
    }
}

/// Parses the command line; if it is wrong, says so (also as JSON, if that is asked for) and gives the exit code.
pub fn parse<P: Parser>(program: &str) -> Result<P, ExitCode> {
    P::try_parse().map_err(|error| {
        let json = std::env::args().any(|argument| argument == "-j" || argument == "--json");
        if !error.use_stderr() || !json {
            error.exit();
        }
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        let line = line.strip_prefix("error: ").unwrap_or(line).to_owned();
        finish(program, true, Err(Failure::new(22, line)));
        ExitCode::from(2)
    })
}

/// Prints the outcome and turns it into the exit code: 0 worked, 1 failed (2 is a wrong command line, from clap). An outcome that
/// cannot be printed is a failure.
pub fn finish(program: &str, json: bool, outcome: Result<Answer, Failure>) -> ExitCode {
    #[derive(Serialize)]
    struct Envelope {
        response: serde_json::Value,
        error: Option<String>,
        status: i32,
    }
    let print_json = |envelope: &Envelope| {
        let mut text = serde_json::to_string_pretty(envelope).expect("answers are plain data");
        text.push('\n');
        print(text.as_bytes())
    };
    let printed = match outcome {
        Ok(Answer { response, .. }) if json => print_json(&Envelope { response, error: None, status: 0 }),
        Ok(Answer { mut text, .. }) => {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            print(text.as_bytes())
        }
        Err(failure) => Err(failure),
    };
    let Err(Failure { status, message }) = printed else { return ExitCode::SUCCESS };
    if status == QUIET && message.is_empty() {
        return ExitCode::from(QUIET_EXIT);
    }
    if json {
        let envelope = Envelope { response: serde_json::Value::Null, error: Some(message.clone()), status };
        if print_json(&envelope).is_ok() {
            return ExitCode::FAILURE;
        }
    }
    // Standard error may be closed, too: then the exit code says it.
    let _ = writeln!(io::stderr(), "{program}: {message}");
    ExitCode::FAILURE
}

/// What completes the program's commands in a shell. Not written to standard output directly, where a failure would be a panic.
pub fn completion(shell: clap_complete::Shell, command: &mut clap::Command, program: &str) -> Answer {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, program, &mut script);
    Answer::new(serde_json::Value::Null, String::from_utf8_lossy(&script))
}

/// Lays out rows in columns, each as wide as its widest cell; the first row is the head.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += cell;
            line += &" ".repeat(width + 2 - cell.chars().count());
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: &[&str]| cells.iter().map(|cell| cell.to_string()).collect::<Vec<_>>();
        let text = table(&[row(&["Label", "Size"]), row(&["a", "1"]), row(&["längst", "22"])]);
        assert_eq!(text, "Label   Size\na       1\nlängst  22\n");
    }
}
