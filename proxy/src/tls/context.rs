//! What both sides of TLS are made of: a recipe, the secrets that it needs, and what was last built from them.
//!
//! A core may serve many contexts that differ in nothing that matters for it: a rotated secret is then built into it once.
//! Built on the control thread; workers only load what is built.

use super::material::{Material, Sources};
use super::secrets::{Commit, Follower, Parsed};
use super::stats::ContextStats;
use super::{CertificateView, Secrets, TlsFailure, suites};
use crate::config::ConfigError;
use crate::config::model::CommonTls;
use crate::slots::Key;
use arc_swap::ArcSwapOption;
use rustls::crypto::CryptoProvider;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// How to make a rustls configuration of one side.
pub(super) trait Recipe: Send + Sync + 'static {
    type Built: Send + Sync;

    fn common(&self) -> &CommonTls;

    /// # Errors
    /// Material that this side cannot do with.
    fn build(&self, provider: &Arc<CryptoProvider>, material: &Material) -> Result<Self::Built, ConfigError>;
}

/// What was built, and of what.
pub(super) struct Current<B> {
    pub built: B,
    pub material: Material,
}

pub(super) struct Core<R: Recipe> {
    pub recipe: R,
    pub provider: Arc<CryptoProvider>,
    secrets: Arc<Secrets>,
    sources: Sources,
    /// Only the control thread builds and stores, so that a later secret is never overtaken by an earlier one.
    current: ArcSwapOption<Current<R::Built>>,
    /// Of the contexts that use it.
    users: Mutex<Vec<Weak<ContextStats>>>,
}

impl<R: Recipe> Core<R> {
    /// # Errors
    /// Names the field that cannot be used (cipher, certificate, CA).
    pub fn new(recipe: R, secrets: &Arc<Secrets>) -> Result<Arc<Core<R>>, ConfigError> {
        let in_common = |e: ConfigError| e.inside("common_tls_context");
        let common = recipe.common();
        let sources = Sources::new(common, secrets).map_err(in_common)?;
        suites::versions(common).map_err(in_common)?;
        let core = Arc::new(Core {
            provider: suites::provider(common).map_err(in_common)?,
            secrets: secrets.clone(),
            sources,
            current: ArcSwapOption::empty(),
            users: Mutex::default(),
            recipe,
        });
        let follower: Arc<dyn Follower> = core.clone();
        secrets.follow(Arc::downgrade(&follower));
        match core.build(None) {
            // a secret that does not fit refuses connections, not the listener or cluster: a later one may fit
            Err(e) if core.sources.has_secrets() => tracing::warn!("TLS context is not ready: {e}"),
            built => core.current.store(built.map_err(in_common)?),
        }
        Ok(core)
    }

    /// A context counts in `stats` what becomes of this core.
    pub fn use_by(&self, stats: &Arc<ContextStats>) {
        let mut users = self.users();
        // growth is paid for by a clean-up whenever the list doubles
        if users.len() == users.capacity() {
            users.retain(|user| user.strong_count() > 0);
        }
        users.push(Arc::downgrade(stats));
    }

    /// What new connections use.
    ///
    /// # Errors
    /// Says which secrets have not arrived.
    pub fn load(&self) -> Result<Arc<Current<R::Built>>, TlsFailure> {
        self.current.load_full().ok_or_else(|| TlsFailure::not_ready(&self.sources.missing()))
    }

    /// Whether every secret has arrived or was given up on.
    pub fn is_settled(&self) -> bool {
        self.sources.is_settled()
    }

    /// Returns when `is_settled` first holds.
    pub async fn settled(&self) {
        self.sources.settled().await;
    }

    /// Names of the secrets that have neither arrived nor been given up on.
    pub fn awaited(&self) -> Vec<Arc<str>> {
        self.sources.awaited()
    }

    /// From the secrets as they are, but for `newer`; `None` while one is missing.
    fn build(&self, newer: Option<(&Key, &Parsed)>) -> Result<Option<Arc<Current<R::Built>>>, ConfigError> {
        let Some(material) = self.sources.load(&self.secrets, newer)? else { return Ok(None) };
        let built = self.recipe.build(&self.provider, &material)?;
        Ok(Some(Arc::new(Current { built, material })))
    }

    fn users(&self) -> MutexGuard<'_, Vec<Weak<ContextStats>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Recipe> Follower for Core<R> {
    fn follows(&self, key: &Key) -> bool {
        self.sources.follows(key)
    }

    fn prepare(self: Arc<Self>, key: &Key, secret: &Parsed) -> Result<Commit, ConfigError> {
        let built = self.build(Some((key, secret)))?;
        Ok(Box::new(move || {
            let Some(built) = built else { return };
            self.current.store(Some(built.clone()));
            self.users().iter().filter_map(Weak::upgrade).for_each(|user| user.rebuilt(&built.material.expiries));
        }))
    }

    fn view(&self) -> Option<CertificateView> {
        self.current.load().as_ref().map(|current| current.material.view.clone())
    }
}
