//! What a context is made of: identities to show and rules to ask, given inline or by secrets.

use super::secrets::{self, Bundle, Identity, Parsed};
use super::stats::Expiry;
use super::verify::Rules;
use super::{CertificateView, Secrets};
use crate::config::ConfigError;
use crate::config::model::{CertificateSource, CommonTls, SdsSecret, SecretKind, ValidationSource};
use crate::slots::{Key, Slot};
use std::sync::Arc;

enum Certificates {
    None,
    Inline(Vec<Arc<Identity>>),
    Secret(Arc<Slot<SecretKind>>),
}

enum Validation {
    None,
    Inline(Arc<Bundle>),
    Secret { default: Option<Arc<Bundle>>, slot: Arc<Slot<SecretKind>> },
}

/// Where a context's material comes from. Holds the slots of its secrets, which keeps them subscribed to.
pub(super) struct Sources {
    certificates: Certificates,
    validation: Validation,
}

/// All of it, at one moment.
pub(super) struct Material {
    pub identities: Vec<Arc<Identity>>,
    pub rules: Arc<Rules>,
    pub view: CertificateView,
    pub expiries: Vec<Expiry>,
}

/// Names in stats of certificates that no secret names. Envoy appends a hash of a name that is empty.
const UNNAMED: &str = "unnamed_cert_e3b0c442";
const UNNAMED_CA: &str = "unnamed_ca_cert_e3b0c442";

impl Sources {
    /// # Errors
    /// The inline certificate or CA that cannot be used.
    pub fn new(common: &CommonTls, secrets: &Secrets) -> Result<Sources, ConfigError> {
        let slot = |secret: &SdsSecret| secrets.store.slot(Secrets::key(secret));
        let certificates = match &common.certificates {
            CertificateSource::None => Certificates::None,
            CertificateSource::Inline(all) => Certificates::Inline(
                all.iter()
                    .enumerate()
                    .map(|(n, c)| secrets::identity(c).map_err(|e| e.inside(&format!("tls_certificates[{n}]"))))
                    .collect::<Result<_, _>>()?,
            ),
            CertificateSource::Sds(secret) => Certificates::Secret(slot(secret)),
        };
        let validation = match &common.validation {
            ValidationSource::None => Validation::None,
            ValidationSource::Inline(context) => {
                let bundle = secrets::bundle(context).map_err(|e| e.inside("validation_context"))?;
                secrets::rules(None, &bundle).map_err(|e| e.inside("validation_context"))?;
                Validation::Inline(bundle)
            }
            ValidationSource::Sds(secret) => Validation::Secret { default: None, slot: slot(secret) },
            ValidationSource::Combined { default, secret } => {
                let path = "combined_validation_context.default_validation_context";
                let default = secrets::bundle(default).map_err(|e| e.inside(path))?;
                Validation::Secret { default: Some(default), slot: slot(secret) }
            }
        };
        Ok(Sources { certificates, validation })
    }

    fn slots(&self) -> impl Iterator<Item = &Arc<Slot<SecretKind>>> {
        let first = if let Certificates::Secret(slot) = &self.certificates { Some(slot) } else { None };
        let second = if let Validation::Secret { slot, .. } = &self.validation { Some(slot) } else { None };
        first.into_iter().chain(second)
    }

    pub fn follows(&self, key: &Key) -> bool {
        self.slots().any(|slot| slot.key == *key)
    }

    /// Whether any of it comes by SDS.
    pub fn has_secrets(&self) -> bool {
        self.slots().next().is_some()
    }

    pub fn is_settled(&self) -> bool {
        self.slots().all(|slot| slot.is_settled())
    }

    pub async fn settled(&self) {
        for slot in self.slots() {
            slot.settled().await;
        }
    }

    /// Names in stats of what is shown and of what is trusted.
    fn names(&self) -> (&str, &str) {
        let own = if let Certificates::Secret(slot) = &self.certificates { &*slot.key.name } else { UNNAMED };
        let trusted = if let Validation::Secret { slot, .. } = &self.validation { &*slot.key.name } else { UNNAMED_CA };
        (own, trusted)
    }

    /// Names of the secrets that warming waits for.
    pub fn awaited(&self) -> Vec<Arc<str>> {
        self.slots().filter(|slot| !slot.is_settled()).map(|slot| slot.key.name.clone()).collect()
    }

    /// Names of the secrets that are not here, for a person to look for.
    pub fn missing(&self) -> String {
        let missing = self.slots().filter(|slot| slot.borrow().is_none()).map(|slot| &*slot.key.name);
        missing.collect::<Vec<_>>().join(", ")
    }

    /// The material as the secrets are now, but for `newer`; `None` while one is missing.
    ///
    /// # Errors
    /// Secrets that are good each by itself and not together, or of the wrong kind; also while another is missing, so
    /// that the one that is wrong is refused and not the one that comes last.
    pub fn load(&self, secrets: &Secrets, newer: Option<(&Key, &Parsed)>) -> Result<Option<Material>, ConfigError> {
        let get = |key: &Key| match newer {
            Some((of, secret)) if of == key => Some(secret.clone()),
            _ => secrets.get(key),
        };
        let identities = match &self.certificates {
            Certificates::None => Some(Vec::new()),
            Certificates::Inline(all) => Some(all.clone()),
            Certificates::Secret(slot) => match get(&slot.key) {
                None => None,
                Some(Parsed::Identity(identity)) => Some(vec![identity]),
                Some(Parsed::Bundle(_)) => return Err(wrong_kind(slot, "a validation context", "a certificate")),
            },
        };
        let rules = match &self.validation {
            Validation::None => Some((Rules::default(), Vec::new())),
            Validation::Inline(bundle) => Some((secrets::rules(None, bundle)?, bundle.view.clone())),
            Validation::Secret { default, slot } => match get(&slot.key) {
                None => None,
                Some(Parsed::Bundle(bundle)) => {
                    let rules = secrets::rules(default.as_deref(), &bundle)?;
                    let inherited = default.as_ref().filter(|_| bundle.trust.is_none()).map(|d| d.view.clone());
                    Some((rules, inherited.unwrap_or_else(|| bundle.view.clone())))
                }
                Some(Parsed::Identity(_)) => return Err(wrong_kind(slot, "a certificate", "a validation context")),
            },
        };
        let Some((identities, (rules, ca))) = identities.zip(rules) else { return Ok(None) };
        let chain = identities.iter().flat_map(|i| i.view.iter().cloned()).collect();
        let (own, trusted) = self.names();
        let own = identities.iter().map(|i| (own.into(), i.described.not_after));
        let expiries = own.chain(ca.first().map(|c| (trusted.into(), c.certificate.not_after))).collect();
        Ok(Some(Material { identities, rules: Arc::new(rules), view: CertificateView { ca, chain }, expiries }))
    }
}

fn wrong_kind(slot: &Slot<SecretKind>, found: &str, expected: &str) -> ConfigError {
    ConfigError::new("", format!("{} is {found}; expected {expected}", slot.key.name))
}
