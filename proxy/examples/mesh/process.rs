//! The parent's side of the processes of the mesh: start, ask, kill, and the last lines of a log when one fails.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::Result;

/// How long anything may take that a condition is waited for: far more than it takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of a log shown when its process failed.
const TAIL: usize = 15;

/// How to start this program again.
pub struct Start<'a> {
    /// What the process is called, in messages and as its log's name.
    pub name: &'a str,
    /// Our own program.
    pub program: &'a Path,
    /// Words before it, such as `ip netns exec NAME`.
    pub prefix: Vec<OsString>,
    /// The role and its flags.
    pub role: Vec<OsString>,
    /// The folder for the log.
    pub logs: &'a Path,
}

/// A running process. It is killed when this is dropped.
pub struct Process {
    pub name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it with stdin closed; all its output goes into its log.
    pub fn start(start: Start<'_>) -> Result<Self> {
        Self::spawn(start, |_| Stdio::null(), |log| Ok(log.try_clone()?.into()))
    }

    fn spawn(
        start: Start<'_>,
        stdin: impl FnOnce(&File) -> Stdio,
        stdout: impl FnOnce(&File) -> std::io::Result<Stdio>,
    ) -> Result<Self> {
        let path = start.logs.join(format!("{}.log", start.name));
        let failed = |e: std::io::Error| format!("cannot start {}: {e}", start.name);
        let log = File::options().create(true).append(true).open(&path).map_err(failed)?;
        let mut words = start.prefix.into_iter().chain([start.program.into()]).chain(start.role);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).stdin(stdin(&log)).stdout(stdout(&log).map_err(failed)?).stderr(log);
        // A group of its own: Ctrl-C reaches only us, and we end the others in order.
        command.process_group(0).kill_on_drop(true);
        let child = command.spawn().map_err(failed)?;
        Ok(Self { name: start.name.to_owned(), child, log: path })
    }

    /// Its process id; 0 when it has ended.
    pub fn id(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// Fails with the end of its log when it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.blame(&format!("ended ({status})"))),
            Err(e) => Err(self.blame(&e.to_string())),
        }
    }

    /// An error with the end of its log.
    pub fn blame(&self, what: &str) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL)..];
        let tail = if tail.is_empty() { "(its log is empty)".to_owned() } else { tail.join("\n    ") };
        format!("{} {what}; the end of its log:\n    {tail}", self.name)
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.map_err(|e| format!("cannot kill {}: {e}", self.name))
    }
}

/// A process that takes commands.
pub struct Worker {
    pub process: Process,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Starts it.
    pub fn start(start: Start<'_>) -> Result<Self> {
        let mut process = Process::spawn(start, |_| Stdio::piped(), |_| Ok(Stdio::piped()))?;
        match (process.child.stdin.take(), process.child.stdout.take()) {
            (Some(commands), Some(answers)) => Ok(Self { process, commands, answers: BufReader::new(answers).lines() }),
            _ => Err(process.blame("has no pipes")),
        }
    }

    /// Gives a command and waits for its answer.
    pub async fn ask(&mut self, command: Value) -> Result<Value> {
        let exchange = async {
            self.commands.write_all(format!("{command}\n").as_bytes()).await?;
            self.answers.next_line().await
        };
        let answer = match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(Ok(Some(line))) => serde_json::from_str(&line).unwrap_or_else(|e| json!({ "error": e.to_string() })),
            Ok(_) => {
                // Its pipes close a moment before it has ended.
                let _ = tokio::time::timeout(Duration::from_secs(1), self.process.child.wait()).await;
                self.process.check()?;
                return Err(self.process.blame("closed its pipes"));
            }
            Err(_) => return Err(self.process.blame(&format!("did not answer {command} within {PATIENCE:?}"))),
        };
        match answer.get("ok") {
            Some(value) => Ok(value.clone()),
            None => Err(format!("{}: {}", self.process.name, answer["error"].as_str().unwrap_or("no answer"))),
        }
    }

    /// Asks for a value the answer must be, in text form.
    pub async fn ask_text(&mut self, command: Value) -> Result<String> {
        let answer = self.ask(command).await?;
        answer.as_str().map(str::to_owned).ok_or_else(|| format!("{}: expected text, got {answer}", self.process.name))
    }
}
