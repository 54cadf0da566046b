//! Envoy's command line, flag for flag.
