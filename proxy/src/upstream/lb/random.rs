//! Random: every host with the same probability. Keeps nothing.

use crate::upstream::host::Host;
use std::sync::Arc;

/// An index into `hosts`, which is not empty.
pub(super) fn next(hosts: &[Arc<Host>]) -> usize {
    fastrand::usize(..hosts.len())
}
