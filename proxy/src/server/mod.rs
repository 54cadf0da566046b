//! The life of the process: start order, workers, readiness, drain, shutdown.
