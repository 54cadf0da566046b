//! A SPIFFE authority: what a mesh needs so that its workloads can prove who they are.
//!
//! [`Authority`] is the CA, [`SpiffeId`] a checked identity, [`Svid`] a certificate that proves one, and [`SdsServer`]
//! hands certificates and the trust bundle to a proxy over a Unix socket, as Istio's agent does, and rotates them.
//! Nothing here knows a proxy, a listener or a cluster.
//!
//! ```
//! use certs::{Authority, SpiffeId};
//! use std::time::Duration;
//!
//! let authority = Authority::new("cluster.local")?;
//! let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/reviews".parse()?;
//! let svid = authority.issue(&id, Duration::from_secs(3600), &[])?;
//! assert!(svid.chain_pem.starts_with("-----BEGIN CERTIFICATE-----"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod authority;
mod sds;
mod spiffe;
mod subscription;

pub use authority::{Authority, AuthorityError, Svid};
pub use sds::{BUNDLE, IDENTITY, Nack, Rotation, SECRET_TYPE, SdsError, SdsServer, Secret};
pub use spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
