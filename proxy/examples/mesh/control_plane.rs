//! The control plane: one ADS server per sidecar in one process, and an HTTP page to shift the weights by hand.
//!
//! A sidecar has a port of its own here because the server under it sends everything it holds to everyone who asks.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outrigger_tests::control_plane::{Address, Batch, ControlPlane};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::Result;
use crate::resources::{self, Desired, Pod};
use crate::roles::{Obey, unknown};

/// The control plane's process.
#[derive(Default)]
pub struct ControlPlanes(Rc<RefCell<State>>);

#[derive(Default)]
struct State {
    servers: Vec<(Pod, ControlPlane)>,
    desired: Desired,
}

impl State {
    /// Pushes what is desired: per sidecar as one change, and to each only what changed.
    fn push(&self) {
        for (pod, server) in &self.servers {
            server.batch(|batch| resources::apply(batch, *pod, &self.desired));
        }
    }

    /// What sidecars refused, and rules of the protocol they broke.
    fn complaints(&self) -> Value {
        let mut nacks = Vec::new();
        let mut violations = Vec::new();
        for (pod, server) in &self.servers {
            let refused = server.nacks().into_iter();
            nacks.extend(refused.map(|(of, why)| format!("{}: {of}: {why}", pod.name())));
            violations.extend(server.violations().into_iter().map(|what| format!("{}: {what}", pod.name())));
        }
        json!({ "nacks": nacks, "violations": violations })
    }
}

impl Obey for ControlPlanes {
    async fn obey(&mut self, command: &Value) -> Result<Value> {
        match command["do"].as_str() {
            // {"do": "serve", "pod": NAME, "at": ADDRESS}: the address, with its port.
            Some("serve") => {
                let pod = command["pod"].as_str().and_then(Pod::named).ok_or("no such pod")?;
                let at: SocketAddr = command["at"].as_str().unwrap_or_default().parse().map_err(|_| "no address")?;
                let mut state = self.0.borrow_mut();
                let resources = |batch: &mut Batch<'_>| resources::apply(batch, pod, &state.desired);
                let server = ControlPlane::listen_with(Address::Tcp(at), resources);
                let server = server.map_err(|e| format!("cannot listen on {at}: {e}"))?;
                let bound = server.socket_addr();
                state.servers.push((pod, server));
                Ok(json!(bound.to_string()))
            }
            // {"do": "push", "desired": {...}}: the time of the push, microseconds since 1970.
            Some("push") => {
                self.0.borrow_mut().desired = Desired::from_json(&command["desired"]);
                let now = crate::client::unix_micros();
                self.0.borrow().push();
                Ok(json!(now))
            }
            Some("complaints") => Ok(self.0.borrow().complaints()),
            // {"do": "page", "at": ADDRESS}: serves POST /weights?v2=N.
            Some("page") => {
                let at = command["at"].as_str().unwrap_or_default();
                let listener = TcpListener::bind(at).await.map_err(|e| format!("cannot listen on {at}: {e}"))?;
                let bound = listener.local_addr().map_err(|e| e.to_string())?;
                // The runtime has one thread; `State` need not be shared between several.
                let state = Rc::clone(&self.0);
                tokio::task::spawn_local(page(listener, state));
                Ok(json!(bound.to_string()))
            }
            _ => unknown(command),
        }
    }
}

async fn page(listener: TcpListener, state: Rc<RefCell<State>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = Rc::clone(&state);
        let service = service_fn(move |request| {
            let answer = answer(&request, &mut state.borrow_mut());
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        tokio::task::spawn_local(async move {
            // A browser that goes away is no error.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn answer(request: &Request<Incoming>, state: &mut State) -> Response<Full<Bytes>> {
    let weight = request.uri().query().and_then(|query| query.strip_prefix("v2=")?.parse::<u32>().ok());
    let (status, text) = match (request.method(), request.uri().path(), weight) {
        (&Method::POST, "/weights", Some(weight @ 0..=100)) => {
            state.desired.weight_v2 = weight;
            state.desired.number += 1;
            state.push();
            let number = state.desired.number;
            (StatusCode::OK, format!("pushed configuration {number}: v1 {}, v2 {weight}\n", 100 - weight))
        }
        (&Method::POST, "/weights", _) => {
            (StatusCode::BAD_REQUEST, "expected POST /weights?v2=N with N from 0 to 100\n".to_owned())
        }
        (&Method::GET, "/", _) => (StatusCode::OK, format!("{:#}\n", state.desired.to_json())),
        _ => (StatusCode::NOT_FOUND, "GET / or POST /weights?v2=N\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}
