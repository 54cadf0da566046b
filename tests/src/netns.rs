//! Network namespaces joined by a bridge, as pods on a node are, with the redirect rules of `docker/iptables-init.sh`.
//!
//! Root only. [`available`] says what is missing; a test that cannot run calls [`skip`] so that its absence is seen.
//! Everything lives in namespaces of its own: the machine's network is not touched.

use std::ffi::OsString;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The script that sets the redirect rules.
pub fn iptables_init() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/iptables-init.sh")
}

/// Whether namespaces with redirect rules can be made here.
///
/// # Errors
/// What is missing, in words.
pub fn available() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces need root".to_owned());
    }
    for (tool, package) in [("ip", "iproute2"), ("iptables", "iptables"), ("iptables-restore", "iptables")] {
        let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        // `ip` answers a flag it does not know with a status of its own; only that it runs counts.
        found.map_err(|e| format!("cannot run '{tool}' ({e}); install the package {package}"))?;
    }
    let probe = Network::new(&["probe"]).map_err(|e| format!("cannot make a network namespace: {e}"))?;
    let [namespace] = &probe.namespaces[..] else { return Err("the probe namespace is missing".to_owned()) };
    namespace.redirect(&[]).map_err(|e| format!("cannot redirect in a network namespace: {e}"))
}

/// Says on stderr that a test did not run, and why, so that nobody takes silence for success.
pub fn skip(test: &str, why: &str) {
    eprintln!("*** NOT RUN: {test}: {why} ***");
}

/// Namespaces on one link, 10.201.0.0/24. Dropping it removes them.
#[derive(Debug)]
pub struct Network {
    hub: String,
    namespaces: Vec<Namespace>,
}

/// One namespace with its address.
#[derive(Debug)]
pub struct Namespace {
    label: String,
    name: String,
    address: Ipv4Addr,
}

impl Network {
    /// Makes one namespace per label, each with `lo`, `eth0`, an address and a default route.
    ///
    /// # Errors
    /// The command that failed, with its output.
    pub fn new(labels: &[&str]) -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let run = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let hub = format!("outrigger-{run}-hub");
        ip(&["netns", "add", &hub])?;
        // From here on dropping `network` cleans up what was made so far.
        let mut network = Self { hub: hub.clone(), namespaces: Vec::new() };
        ip(&["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &hub, "addr", "add", "10.201.0.254/24", "dev", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "bridge", "up"])?;
        for (number, label) in (1..=253_u8).zip(labels) {
            let name = format!("outrigger-{run}-{label}");
            let address = Ipv4Addr::new(10, 201, 0, number);
            ip(&["netns", "add", &name])?;
            network.namespaces.push(Namespace { label: (*label).to_owned(), name: name.clone(), address });
            let port = format!("port{number}");
            ip(&["-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
            ip(&["-n", &hub, "link", "set", &port, "master", "bridge", "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            ip(&["-n", &name, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
            // A packet to any address must leave for OUTPUT's rules to see it.
            ip(&["-n", &name, "route", "add", "default", "via", "10.201.0.254"])?;
        }
        Ok(network)
    }

    /// The namespace made for this label.
    ///
    /// # Panics
    /// When there is none.
    pub fn get(&self, label: &str) -> &Namespace {
        let found = self.namespaces.iter().find(|namespace| namespace.label == label);
        found.unwrap_or_else(|| panic!("no namespace '{label}'"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.namespaces.iter().map(|namespace| &namespace.name).chain([&self.hub]) {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

impl Namespace {
    /// Its address on the link.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The words that run a program inside, for [`crate::proxy::Options::prefix`].
    pub fn prefix(&self) -> Vec<OsString> {
        ["ip", "netns", "exec", &self.name].map(OsString::from).to_vec()
    }

    /// A command that runs inside.
    pub fn command(&self, program: impl Into<OsString>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program.into());
        command
    }

    /// Loads the redirect rules, with these flags of the script.
    ///
    /// # Errors
    /// What the script said.
    pub fn redirect(&self, flags: &[&str]) -> Result<(), String> {
        let script = iptables_init();
        output(self.command("sh").arg(&script).args(flags)).map(drop)
    }

    /// Runs a future inside, on a thread and a runtime of its own: every socket it makes belongs to the namespace.
    ///
    /// # Errors
    /// When the thread cannot enter the namespace.
    pub async fn run<F, T>(&self, future: impl FnOnce() -> F + Send + 'static) -> Result<T, String>
    where
        F: Future<Output = T>,
        T: Send + 'static,
    {
        let path = Path::new("/run/netns").join(&self.name);
        let (done, result) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let run = || {
                let namespace = File::open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                // Moves this thread only, and it ends with the future.
                move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))
                    .map_err(|e| format!("cannot enter {}: {e}", path.display()))?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                Ok(runtime.map_err(|e| e.to_string())?.block_on(future()))
            };
            let _ = done.send(run());
        });
        result.await.map_err(|_| "the thread in the namespace panicked".to_owned())?
    }
}

fn ip(args: &[&str]) -> Result<String, String> {
    output(Command::new("ip").args(args))
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{command:?}: {e}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{H1Client, get};
    use crate::origin::Origin;
    use std::net::SocketAddr;

    fn rules(namespace: &Namespace, save: &str) -> Vec<String> {
        let text = output(namespace.command(save).args(["-t", "nat"])).unwrap();
        text.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect()
    }

    /// Istio's rules for REDIRECT mode, as `iptables-save` prints them.
    const EXPECTED: &str = "\
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001";

    #[test]
    fn the_init_script_sets_istios_rules_again_and_away() {
        if let Err(why) = available() {
            return skip("the_init_script_sets_istios_rules_again_and_away", &why);
        }
        let network = Network::new(&["pod"]).unwrap();
        let pod = network.get("pod");
        let istio = ["-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*"];
        for _ in 0..2 {
            pod.redirect(&[&istio[..], &["-d", "15090,15021,15020"]].concat()).unwrap();
            assert_eq!(rules(pod, "iptables-save").join("\n"), EXPECTED);
        }
        if Path::new("/proc/net/if_inet6").exists() {
            let expected = EXPECTED.replace("127.0.0.6/32", "::6/128").replace("127.0.0.1/32", "::1/128");
            assert_eq!(rules(pod, "ip6tables-save").join("\n"), expected);
        }

        pod.redirect(&["-i", "10.0.0.0/8,fd00::/8", "-x", "10.1.0.0/16", "-b", "80,443", "-o", "3306"]).unwrap();
        let narrow = rules(pod, "iptables-save").join("\n");
        for rule in [
            "-A ISTIO_INBOUND -p tcp -m tcp --dport 443 -j ISTIO_IN_REDIRECT",
            "-A ISTIO_OUTPUT -p tcp -m tcp --dport 3306 -j RETURN",
            "-A ISTIO_OUTPUT -d 10.1.0.0/16 -j RETURN\n-A ISTIO_OUTPUT -d 10.0.0.0/8 -j ISTIO_REDIRECT",
        ] {
            assert!(narrow.contains(rule), "{rule} is missing in\n{narrow}");
        }
        assert!(!narrow.contains("-A ISTIO_OUTPUT -j ISTIO_REDIRECT") && !narrow.contains("fd00"));

        for bad in [["-p", "http"], ["-p", "1,2"], ["-b", "70000"], ["-m", "TPROXY"], ["-i", "$(reboot)"]] {
            let error = pod.redirect(&bad).unwrap_err();
            assert!(error.contains(bad[0]), "{error}");
        }
        pod.redirect(&["-c"]).unwrap();
        assert!(rules(pod, "iptables-save").is_empty());
    }

    #[tokio::test]
    async fn an_application_is_redirected_without_knowing() {
        if let Err(why) = available() {
            return skip("an_application_is_redirected_without_knowing", &why);
        }
        let network = Network::new(&["client", "server"]).unwrap();
        let (client, server) = (network.get("client"), network.get("server"));
        let listen = |port: u16, tag: &'static str| {
            move || async move { Origin::listen(tag, SocketAddr::from(([0, 0, 0, 0], port)), None) }
        };
        let _outbound = client.run(listen(15001, "outbound proxy")).await.unwrap();
        let _inbound = server.run(listen(15006, "inbound proxy")).await.unwrap();
        let app = SocketAddr::from((server.address(), 8080));
        let ask = move || async move {
            let mut client = H1Client::connect(&app.into()).await?;
            client.send(get("app", "/")).await
        };
        server.redirect(&[]).unwrap();
        let answer = client.run(ask).await.unwrap().unwrap();
        assert_eq!(answer.origin_version(), "inbound proxy");
        client.redirect(&[]).unwrap();
        let answer = client.run(ask).await.unwrap().unwrap();
        assert_eq!(answer.origin_version(), "outbound proxy");
    }
}
