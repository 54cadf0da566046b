//! Flags in, server up.

use clap::Parser;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Freed pages go back to the system within a second, so that memory follows traffic; huge pages would make a worker's
/// first allocation cost 2 MiB. Read by jemalloc under this name before `main` (`man jemalloc`, "Tuning").
#[allow(non_upper_case_globals, reason = "the name is jemalloc's")]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static malloc_conf: &[u8] = b"thp:never,dirty_decay_ms:1000,muzzy_decay_ms:0,tcache_max:8192\0";

fn main() -> ExitCode {
    match outrigger::cli::Options::try_parse() {
        Ok(options) => outrigger::server::run(options),
        Err(said) => {
            // help and errors alike; a closed terminal is no reason to fail differently
            let _ = said.print();
            // Envoy's exit status of bad flags is 1, where clap's own would be 2
            if said.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
    }
}
