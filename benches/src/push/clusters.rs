//! Many clusters in one push, and then one of them changed at a time.

use super::Row;
use super::bed::Bed;
use outrigger_tests::config;
use outrigger_tests::control_plane::{CDS, EDS};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use xds_protos::pb::google::protobuf::Duration as ProtoDuration;

/// For memory to be given back, and anything put off to be done.
const SETTLE: Duration = Duration::from_secs(5);

/// Where the endpoints of the clusters come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoints {
    /// Inside each cluster; a change is one of the cluster.
    Static,
    /// EDS; a change is one of the endpoints.
    Eds,
}

impl Endpoints {
    pub fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Eds => "eds",
        }
    }

    fn types(self) -> &'static [&'static str] {
        match self {
            Self::Static => &[CDS],
            Self::Eds => &[CDS, EDS],
        }
    }
}

/// What one proxy needed.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// From the push's way out to the first answer through its last cluster.
    pub live_ms: f64,
    /// From there to the last acknowledgement.
    pub acknowledged_ms: f64,
    /// CPU of all threads for it.
    pub live_cpu_ms: f64,
    /// Resident memory per 1,000 idle clusters.
    pub mb_per_1000: f64,
    /// CPU of the worker per push that changes one cluster.
    pub worker_ms: f64,
    /// CPU of the control thread for it.
    pub control_ms: f64,
    /// CPU of other threads for it.
    pub other_ms: f64,
    /// From such a push's way out to its acknowledgement.
    pub one_ms: f64,
}

impl Cost {
    /// In the order of a table.
    pub const ROWS: [Row<Cost>; 8] = [
        ("live after, ms", |c| c.live_ms),
        ("acknowledged after, ms", |c| c.acknowledged_ms),
        ("CPU of it, ms", |c| c.live_cpu_ms),
        ("memory per 1,000, MB", |c| c.mb_per_1000),
        ("one changed: worker, ms", |c| c.worker_ms),
        ("one changed: control, ms", |c| c.control_ms),
        ("one changed: others, ms", |c| c.other_ms),
        ("one changed: answer, ms", |c| c.one_ms),
    ];

    /// The value in the middle of several runs', each by itself.
    pub fn median(runs: &[Cost]) -> Cost {
        let of = |value: fn(&Cost) -> f64| super::median(runs.iter().map(value));
        Cost {
            live_ms: of(|c| c.live_ms),
            acknowledged_ms: of(|c| c.acknowledged_ms),
            live_cpu_ms: of(|c| c.live_cpu_ms),
            mb_per_1000: of(|c| c.mb_per_1000),
            worker_ms: of(|c| c.worker_ms),
            control_ms: of(|c| c.control_ms),
            other_ms: of(|c| c.other_ms),
            one_ms: of(|c| c.one_ms),
        }
    }

    pub fn to_json(self) -> Value {
        json!({
            "live_ms": self.live_ms, "acknowledged_ms": self.acknowledged_ms, "live_cpu_ms": self.live_cpu_ms,
            "mb_per_1000": self.mb_per_1000, "one_changed": {
                "worker_ms": self.worker_ms, "control_ms": self.control_ms, "other_ms": self.other_ms,
                "answer_ms": self.one_ms,
            },
        })
    }
}

fn name(k: usize) -> String {
    format!("outbound|8080||service-{k:05}.default.svc.cluster.local")
}

/// Runs one proxy through it.
pub fn run(
    binary: &Path,
    endpoints: Endpoints,
    clusters: usize,
    pushes: u32,
    origin: SocketAddr,
) -> Result<Cost, String> {
    let last = name(clusters.saturating_sub(1));
    let bed = Bed::start(binary, &config::route_config("routes", vec![config::route_to("/", &last)]))?;
    bed.idle(SETTLE)?;
    let (empty, before) = (bed.proxy.rss_mb(), bed.proxy.threads()?);
    bed.control_plane.batch(|batch| {
        for k in 0..clusters {
            let name = name(k);
            match endpoints {
                Endpoints::Static => batch.set(&name, &config::static_cluster(&name, &[origin])),
                Endpoints::Eds => {
                    batch.set(&name, &config::eds_cluster(&name)).set(&name, &config::endpoints(&name, &[origin]))
                }
            };
        }
    });
    let live = bed.wait_live()?;
    for type_url in endpoints.types() {
        bed.settled(type_url)?;
    }
    let settled = Instant::now();
    let used = bed.proxy.threads()?.since(&before);
    let sent = bed.control_plane.sent();
    let out = sent.iter().find(|sent| sent.type_url == CDS && sent.names.len() == clusters);
    let out = out.ok_or("the clusters were not sent in one push")?.at;
    bed.idle(SETTLE)?;
    let mb_per_1000 = (bed.proxy.rss_mb() - empty) / (clusters as f64 / 1000.0);

    let (before, began) = (bed.proxy.threads()?, Instant::now());
    let mut waited = Duration::ZERO;
    for push in 0..pushes {
        // far apart, and each with a value it did not have
        let k = (push as usize).wrapping_mul(7919) % clusters.max(1);
        let (name, odd) = (name(k), i64::from(push) + 3);
        let (out, answered) = match endpoints {
            Endpoints::Static => {
                let mut changed = config::static_cluster(&name, &[origin]);
                changed.connect_timeout = Some(ProtoDuration { seconds: odd, nanos: 0 });
                bed.push(&[CDS], |batch| batch.set(&name, &changed))?
            }
            Endpoints::Eds => {
                let other = SocketAddr::from(([127, 0, 0, 2], origin.port().wrapping_add(push as u16 % 100)));
                bed.push(&[EDS], |batch| batch.set(&name, &config::endpoints(&name, &[origin, other])))?
            }
        };
        waited += answered - out;
    }
    let took = began.elapsed();
    // what is put off, such as the end of replaced clusters, is part of it
    bed.idle(SETTLE)?;
    let spent = bed.proxy.threads()?.since(&before);
    let idle = bed.idle(SETTLE)?;
    let time = (took + SETTLE).as_secs_f64() / SETTLE.as_secs_f64();
    let each = |spent: Duration, idle: Duration| {
        (spent.as_secs_f64() - idle.as_secs_f64() * time) * 1000.0 / f64::from(pushes.max(1))
    };
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    Ok(Cost {
        live_ms: ms(live.saturating_duration_since(out)),
        acknowledged_ms: ms(settled.saturating_duration_since(out)),
        live_cpu_ms: ms(used.worker + used.control + used.other),
        mb_per_1000,
        worker_ms: each(spent.worker, idle.worker),
        control_ms: each(spent.control, idle.control),
        other_ms: each(spent.other, idle.other),
        one_ms: ms(waited) / f64::from(pushes.max(1)),
    })
}
