//! Where the pods stand: all on this machine's loopback, or, with `--netns`, each in a network namespace whose traffic
//! iptables redirects to the sidecar, by the same script that the init container runs.

use std::ffi::OsString;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;

use outrigger_tests::netns::{Network, available};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Result;
use crate::resources::{Pod, SERVICE_PORT};

/// The user the sidecars run as: redirect rules let its traffic pass.
const PROXY_USER: u32 = 1337;
/// The user the applications run as.
const APP_USER: u32 = 1000;
/// The service's address. No machine has it; the redirect rules and the routes are what makes it work.
const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), SERVICE_PORT);
/// The namespace for the control plane and for us.
const NODE: &str = "node";
const ADMIN_PORT: u16 = 15000;

/// Where things are.
pub enum Place {
    Loopback,
    Namespaces(Network),
}

/// Makes the place.
///
/// # Errors
/// When namespaces were asked for and cannot be made: what is missing.
pub fn prepare(namespaces: bool) -> Result<Place> {
    if !namespaces {
        return Ok(Place::Loopback);
    }
    available().map_err(|why| format!("--netns: {why}"))?;
    let network = Network::new(&[Pod::Client.name(), Pod::ReviewsV1.name(), Pod::ReviewsV2.name(), NODE])?;
    for pod in Pod::ALL {
        // As Istio's injector calls it; the admin page stays reachable for the checks.
        let ports = format!("15090,15021,15020,{ADMIN_PORT}");
        let user = PROXY_USER.to_string();
        network
            .get(pod.name())
            .redirect(&["-p", "15001", "-z", "15006", "-u", &user, "-i", "*", "-b", "*", "-d", &ports])?;
    }
    // We, and what we start without a prefix, stand beside the pods: on the node.
    let path = Path::new("/run/netns").join(network.get(NODE).name());
    let enter = File::open(&path).and_then(|namespace| {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(Into::into)
    });
    enter.map_err(|e| format!("--netns: cannot enter {}: {e}", path.display()))?;
    Ok(Place::Namespaces(network))
}

impl Place {
    /// Whether iptables redirects the traffic.
    pub fn redirects(&self) -> bool {
        matches!(self, Self::Namespaces(_))
    }

    fn address_of(&self, label: &str) -> IpAddr {
        match self {
            Self::Loopback => Ipv4Addr::LOCALHOST.into(),
            Self::Namespaces(network) => network.get(label).address().into(),
        }
    }

    /// Where the control plane and the impostor listen, on a free port.
    pub fn node(&self) -> SocketAddr {
        SocketAddr::new(self.address_of(NODE), 0)
    }

    /// Where a sidecar's admin page listens: on loopback a free port.
    pub fn admin(&self, pod: Pod) -> SocketAddr {
        SocketAddr::new(self.address_of(pod.name()), if self.redirects() { ADMIN_PORT } else { 0 })
    }

    /// Where an application listens.
    pub fn application(&self) -> SocketAddr {
        match self {
            Self::Loopback => SocketAddr::from(([127, 0, 0, 1], 0)),
            Self::Namespaces(_) => SocketAddr::from(([0, 0, 0, 0], SERVICE_PORT)),
        }
    }

    /// Where the others reach a pod's service, given the address its inbound listener is bound to.
    pub fn endpoint(&self, pod: Pod, inbound: SocketAddr) -> SocketAddr {
        match self {
            Self::Loopback => inbound,
            Self::Namespaces(_) => SocketAddr::new(self.address_of(pod.name()), SERVICE_PORT),
        }
    }

    /// What the client application connects to, given the address of its sidecar's listener, if that is bound.
    pub fn service(&self, outbound: Option<SocketAddr>) -> Result<SocketAddr> {
        match self {
            Self::Loopback => outbound.ok_or_else(|| "the client's sidecar has no outbound listener".to_owned()),
            Self::Namespaces(_) => Ok(SERVICE),
        }
    }

    /// Where the application of a pod is reached past all proxies, by one that stands in the same pod.
    pub fn direct(&self, origin: SocketAddr) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], origin.port()))
    }

    /// The words that start a program as a pod's application.
    pub fn as_application(&self, pod: Pod) -> Vec<OsString> {
        self.prefix(pod, APP_USER)
    }

    /// The words that start a program as a pod's sidecar.
    pub fn as_sidecar(&self, pod: Pod) -> Vec<OsString> {
        self.prefix(pod, PROXY_USER)
    }

    fn prefix(&self, pod: Pod, user: u32) -> Vec<OsString> {
        let Self::Namespaces(network) = self else { return Vec::new() };
        let user = user.to_string();
        let mut words = network.get(pod.name()).prefix();
        words.extend(["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--"].map(OsString::from));
        words
    }

    /// Lets a pod's sidecar write into its folder, when it runs as another user.
    pub fn give(&self, folder: &Path) -> Result<()> {
        if !self.redirects() {
            return Ok(());
        }
        let given = std::os::unix::fs::chown(folder, Some(PROXY_USER), Some(PROXY_USER));
        given.map_err(|e| format!("cannot give {} to user {PROXY_USER}: {e}", folder.display()))
    }

    /// What a person types before a command to run it on the node, or in a pod.
    pub fn shell_prefix(&self, pod: Option<Pod>) -> String {
        match self {
            Self::Loopback => String::new(),
            Self::Namespaces(network) => {
                format!("ip netns exec {} ", network.get(pod.map_or(NODE, Pod::name)).name())
            }
        }
    }
}
