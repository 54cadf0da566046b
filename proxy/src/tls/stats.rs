//! `ssl.*` below a listener or a cluster.
//!
//! Made when they are first counted in: thousands of clusters that never connect have none.

use super::suites::{GROUP_COUNT, SUITE_COUNT};
use super::{TlsFailure, TlsFailureKind, TlsInfo, suites};
use crate::stats::{Counter, Gauge, Scope};
use rustls::{CipherSuite, NamedGroup};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Which side of TLS a context is: names differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Server,
    Client,
}

/// The stats of one context.
pub(super) struct ContextStats {
    scope: Scope,
    side: Side,
    /// Rebuilds before `made`.
    rebuilds: AtomicU64,
    made: OnceLock<Box<TlsStats>>,
}

/// A certificate's name in stats (the secret's), and when it expires.
pub(super) type Expiry = (Box<str>, SystemTime);

impl ContextStats {
    pub fn new(scope: &Scope, side: Side) -> ContextStats {
        ContextStats { scope: scope.clone(), side, rebuilds: AtomicU64::new(0), made: OnceLock::new() }
    }

    /// The stats; `expiries` is what the context shows and trusts now.
    pub fn get(&self, expiries: &[Expiry]) -> &TlsStats {
        self.made.get_or_init(|| {
            let stats = TlsStats::new(&self.scope, self.side);
            stats.update_by_sds.add(self.rebuilds.load(Ordering::Relaxed));
            stats.show_expiry(expiries);
            Box::new(stats)
        })
    }

    /// A secret came and the context was built anew.
    pub fn rebuilt(&self, expiries: &[Expiry]) {
        match self.made.get() {
            Some(stats) => {
                stats.update_by_sds.inc();
                stats.show_expiry(expiries);
            }
            None => drop(self.rebuilds.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

pub(super) struct TlsStats {
    scope: Scope,
    handshake: Counter,
    connection_error: Counter,
    session_reused: Counter,
    no_certificate: Counter,
    fail_verify_no_cert: Counter,
    fail_verify_error: Counter,
    fail_verify_san: Counter,
    fail_verify_cert_hash: Counter,
    secrets_not_ready: Counter,
    update_by_sds: Counter,
    expiries: Mutex<Vec<Gauge>>,
    /// Made when first negotiated, as in Envoy.
    ciphers: [OnceLock<Counter>; SUITE_COUNT],
    groups: [OnceLock<Counter>; GROUP_COUNT],
    versions: [OnceLock<Counter>; 2],
}

impl TlsStats {
    fn new(scope: &Scope, side: Side) -> TlsStats {
        let ssl = scope.scope("ssl.");
        let factory = scope.scope(match side {
            Side::Server => "server_ssl_socket_factory.",
            Side::Client => "client_ssl_socket_factory.",
        });
        TlsStats {
            handshake: ssl.counter("handshake"),
            connection_error: ssl.counter("connection_error"),
            session_reused: ssl.counter("session_reused"),
            no_certificate: ssl.counter("no_certificate"),
            fail_verify_no_cert: ssl.counter("fail_verify_no_cert"),
            fail_verify_error: ssl.counter("fail_verify_error"),
            fail_verify_san: ssl.counter("fail_verify_san"),
            fail_verify_cert_hash: ssl.counter("fail_verify_cert_hash"),
            secrets_not_ready: factory.counter(match side {
                Side::Server => "downstream_context_secrets_not_ready",
                Side::Client => "upstream_context_secrets_not_ready",
            }),
            update_by_sds: factory.counter("ssl_context_update_by_sds"),
            expiries: Mutex::default(),
            scope: ssl,
            ciphers: Default::default(),
            groups: Default::default(),
            versions: Default::default(),
        }
    }

    /// `ssl.certificate.<name>.expiration_unix_time_seconds`.
    fn show_expiry(&self, expiries: &[Expiry]) {
        let gauge = |(name, at): &Expiry| {
            let gauge = self.scope.gauge(&format!("certificate.{name}.expiration_unix_time_seconds"));
            gauge.set(at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()));
            gauge
        };
        let shown = expiries.iter().map(gauge).collect();
        *self.expiries.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }

    pub fn succeeded(&self, info: &TlsInfo, suite: Option<CipherSuite>, group: Option<NamedGroup>) {
        self.handshake.inc();
        if info.resumed {
            self.session_reused.inc();
        }
        if info.peer.is_none() {
            self.no_certificate.inc();
        }
        let version = &self.versions[usize::from(info.version == "TLSv1.3")];
        version.get_or_init(|| self.scope.counter(&format!("versions.{}", info.version))).inc();
        if let Some((at, name)) = suite.and_then(suites::suite_name) {
            self.ciphers[at].get_or_init(|| self.scope.counter(&format!("ciphers.{name}"))).inc();
        }
        if let Some((at, name)) = group.and_then(suites::group_name) {
            self.groups[at].get_or_init(|| self.scope.counter(&format!("curves.{name}"))).inc();
        }
    }

    pub fn failed(&self, failure: &TlsFailure, pinned: bool) {
        match failure.kind {
            TlsFailureKind::NotReady => self.secrets_not_ready.inc(),
            TlsFailureKind::NoCertificate => self.fail_verify_no_cert.inc(),
            TlsFailureKind::WrongIdentity if pinned => self.fail_verify_cert_hash.inc(),
            TlsFailureKind::WrongIdentity => self.fail_verify_san.inc(),
            TlsFailureKind::Untrusted => self.fail_verify_error.inc(),
            TlsFailureKind::Handshake => self.connection_error.inc(),
            // the other side going away is no fault of TLS: Envoy counts it nowhere
            TlsFailureKind::Closed => {}
        }
    }
}
