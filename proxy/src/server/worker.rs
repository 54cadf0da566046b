//! Worker threads: each one runs a single-threaded runtime of its own, with its own sockets and pools.

use crate::listener::{Order, run_worker};
use crate::network::Worker;
use crate::services::Services;
use crate::upstream::WorkerUpstream;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::{Builder, LocalRuntime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// How often a worker drops pools of what is gone and idle connections past their time.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The senders of orders and the threads; a worker ends when its sender is dropped and its connections have ended.
pub struct Workers {
    pub orders: Vec<UnboundedSender<Order>>,
    pub threads: Vec<JoinHandle<()>>,
}

/// A runtime whose tasks stay on this thread.
pub fn local_runtime() -> io::Result<LocalRuntime> {
    Builder::new_current_thread().enable_all().build_local(tokio::runtime::LocalOptions::default())
}

/// Starts `count` workers. They accept nothing before an order tells them to.
///
/// # Errors
/// A thread or runtime that cannot be made (limits of the process).
pub fn spawn(count: usize, services: &Arc<Services>) -> io::Result<Workers> {
    let mut workers = Workers { orders: Vec::new(), threads: Vec::new() };
    for index in 0..count {
        let (tx, rx) = unbounded_channel();
        let services = services.clone();
        let (ready_tx, ready) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name(format!("wrk:worker_{index}")).spawn(move || {
            match local_runtime() {
                Ok(runtime) => {
                    // the receiver waits for exactly this
                    let _ = ready_tx.send(Ok(()));
                    runtime.block_on(run(index, services, rx));
                }
                Err(error) => drop(ready_tx.send(Err(error))),
            }
        })?;
        ready.recv().map_err(|_| io::Error::other(format!("worker {index} ended while it started")))??;
        workers.orders.push(tx);
        workers.threads.push(thread);
    }
    Ok(workers)
}

async fn run(index: usize, services: Arc<Services>, orders: UnboundedReceiver<Order>) {
    services.registry.adopt_thread();
    let upstream = WorkerUpstream::new(services.clusters.clone());
    let sweeper = tokio::task::spawn_local({
        let upstream = upstream.clone();
        async move {
            let mut tick = tokio::time::interval(SWEEP_INTERVAL);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                upstream.sweep();
            }
        }
    });
    run_worker(Rc::new(Worker { index, services, upstream }), orders).await;
    sweeper.abort();
}
