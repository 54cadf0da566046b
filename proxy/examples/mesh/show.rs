//! What the terminal shows while the mesh works, and the JSON object for machines.
//!
//! Colours and a moving line only on a terminal; otherwise plain lines. With `--json` nothing but the object.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use crate::Result;

/// The error of a run that was ended by a signal.
pub const STOPPED: &str = "stopped";

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";
const CLEAR_LINE: &str = "\r\x1b[2K";

/// Shows a run and remembers what it claimed.
pub struct Show {
    json: bool,
    terminal: bool,
    section: String,
    claims: Vec<Value>,
    failed: usize,
    figures: Map<String, Value>,
}

impl Show {
    pub fn new(json: bool) -> Self {
        let terminal = !json && std::io::stdout().is_terminal();
        Self { json, terminal, section: String::new(), claims: Vec::new(), failed: 0, figures: Map::new() }
    }

    fn style(&self, style: &str, text: &str) -> String {
        if self.terminal { format!("{style}{text}{PLAIN}") } else { text.to_owned() }
    }

    fn print(&self, line: &str) {
        if !self.json {
            let clear = if self.terminal { CLEAR_LINE } else { "" };
            // Nobody reads on: the exit status still tells.
            let _ = writeln!(std::io::stdout(), "{clear}{line}");
        }
    }

    /// A line on the way.
    pub fn line(&self, text: &str) {
        self.print(text);
    }

    /// Begins a part of the run.
    pub fn section(&mut self, title: &str) {
        self.section = title.to_owned();
        self.print(&format!("\n{}", self.style(BOLD, title)));
    }

    /// What is being done right now; the next line of any kind replaces it.
    pub fn progress(&self, text: &str) {
        if self.terminal {
            let _ = write!(std::io::stdout(), "{CLEAR_LINE}  {DIM}... {text}{PLAIN}");
            let _ = std::io::stdout().flush();
        }
    }

    /// A claim of this run, and what was found.
    pub fn claim(&mut self, holds: bool, claim: &str, found: &str) {
        let mark = if holds { self.style(GREEN, "ok  ") } else { self.style(RED, "FAIL") };
        let found_shown = if found.is_empty() { String::new() } else { self.style(DIM, &format!("  {found}")) };
        self.print(&format!("  {mark} {claim}{found_shown}"));
        self.failed += usize::from(!holds);
        self.claims.push(json!({ "section": self.section, "claim": claim, "ok": holds, "found": found }));
    }

    /// A figure for `--json`.
    pub fn figure(&mut self, name: &str, value: Value) {
        self.figures.insert(name.to_owned(), value);
    }

    /// Ends the run: exit status 1 when it broke off or a claim did not hold.
    pub fn finish(self, outcome: Result<()>) -> ExitCode {
        let stopped = matches!(&outcome, Err(e) if e == STOPPED);
        let ok = self.failed == 0 && outcome.is_ok();
        if self.json {
            let error = outcome.err();
            let all = json!({ "ok": ok, "error": error, "claims": self.claims, "figures": self.figures });
            let _ = writeln!(std::io::stdout(), "{all:#}");
        } else if let Err(error) = outcome {
            if self.terminal {
                let _ = write!(std::io::stdout(), "{CLEAR_LINE}");
            }
            if !stopped {
                eprintln!("mesh: {error}");
            }
        } else if !self.claims.is_empty() {
            let (count, failed) = (self.claims.len(), self.failed);
            let text = match failed {
                0 => self.style(GREEN, &format!("all {count} claims hold")),
                _ => self.style(RED, &format!("{failed} of {count} claims do not hold")),
            };
            self.print(&format!("\n{text}"));
        }
        // Ctrl-C after good checks is how `--serve` ends.
        match ok || (stopped && self.failed == 0 && !self.json) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }
}
