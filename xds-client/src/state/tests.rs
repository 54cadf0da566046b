//! What is said, in which order: the machine against sequences seen on Envoy's wire.

use std::time::Instant;

use super::*;
use crate::event::{Kind, Resource};

/// A request in the notation of the wire logs: `CDS sub=[a] unsub=[b] init={..} nonce='n' node ERR='..'`.
pub(super) fn shown(mode: Mode, r: &Request) -> String {
    let name = r.type_url.rsplit_once('.').map_or(r.type_url.as_str(), |(_, name)| name);
    let mut held: Vec<_> = r.initial_versions.iter().map(|(k, v)| format!("{k}:{v}")).collect();
    held.sort();
    let said = match mode {
        Mode::Delta => {
            format!("sub=[{}] unsub=[{}] init={{{}}}", r.names.join(","), r.unsubscribe.join(","), held.join(","))
        }
        Mode::Sotw => format!("v='{}' names=[{}]", r.version, r.names.join(",")),
    };
    let node = if r.node { " node" } else { "" };
    let error = r.error.as_ref().map(|e| format!(" ERR='{e}'")).unwrap_or_default();
    format!("{name} {said} nonce='{}'{node}{error}", r.nonce)
}

/// A machine on a stream, driven line by line.
pub(super) struct Talk {
    mode: Mode,
    pub machine: Machine,
    stream: u64,
    /// The clock.
    pub now: Instant,
}

impl Talk {
    pub fn new(mode: Mode) -> Self {
        Talk::on(mode, Machine::new(mode, None, true))
    }

    /// On a stream of one type.
    pub fn only(mode: Mode, type_url: TypeUrl) -> Self {
        Talk::on(mode, Machine::new(mode, Some(type_url), true))
    }

    fn on(mode: Mode, mut machine: Machine) -> Self {
        let stream = machine.open();
        Talk { mode, machine, stream, now: Instant::now() }
    }

    pub fn reconnect(&mut self) {
        self.machine.close();
        self.stream = self.machine.open();
    }

    pub fn subscribe(&mut self, t: &TypeUrl, names: &[&str]) {
        let subscription =
            if names == ["*"] { Subscription::Wildcard } else { Subscription::names(names.iter().copied()) };
        self.machine.subscribe(t, subscription).unwrap();
    }

    pub fn unsubscribe(&mut self, t: &TypeUrl, names: &[&str]) {
        self.machine.unsubscribe(t, names);
    }

    /// The server sends resources of one version.
    pub fn response(&mut self, t: &TypeUrl, version: &str, nonce: &str, names: &[&str]) -> Outstanding {
        self.offer(t, version, nonce, names, &[]).expect("the type is subscribed")
    }

    pub fn offer(
        &mut self,
        t: &TypeUrl,
        version: &str,
        nonce: &str,
        names: &[&str],
        gone: &[&str],
    ) -> Option<Outstanding> {
        let resource = |name: &&str| Resource {
            name: name.to_string(),
            version: version.into(),
            body: Some(Default::default()),
            ..Resource::default()
        };
        let mut incoming = self.incoming(t, version, nonce, names.iter().map(resource).collect());
        incoming.removed = gone.iter().map(|n| n.to_string()).collect();
        self.machine.received(&mut incoming)
    }

    /// The server sends these; also what the consumer gets to see.
    pub fn resources(
        &mut self,
        t: &TypeUrl,
        version: &str,
        nonce: &str,
        resources: Vec<Resource>,
    ) -> (Outstanding, Incoming) {
        let mut incoming = self.incoming(t, version, nonce, resources);
        let outstanding = self.machine.received(&mut incoming).expect("the type is subscribed");
        (outstanding, incoming)
    }

    fn incoming(&self, t: &TypeUrl, version: &str, nonce: &str, resources: Vec<Resource>) -> Incoming {
        Incoming {
            type_url: t.clone(),
            version: version.into(),
            nonce: nonce.into(),
            kind: if self.mode == Mode::Delta { Kind::Delta } else { Kind::Full },
            resources,
            removed: Vec::new(),
            errors: Vec::new(),
            control_plane: String::new(),
            bytes: 0,
            received: self.now,
        }
    }

    pub fn ack(&mut self, o: Outstanding) {
        self.machine.answer(o, Verdict::Ack, self.now);
    }

    pub fn nack(&mut self, o: Outstanding, refused: &[&str]) {
        let refused = refused.iter().map(|n| n.to_string()).collect();
        self.machine.answer(o, Verdict::Nack { detail: "bad".into(), refused }, self.now);
    }

    /// Everything that is said now.
    pub fn said(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        loop {
            match self.machine.next_request(self.stream) {
                Next::Send(r) => said.push(shown(self.mode, &r)),
                Next::Wait => return said,
                Next::Ended => panic!("the stream is the live one"),
            }
        }
    }
}

const CDS: TypeUrl = TypeUrl::CLUSTER;
const EDS: TypeUrl = TypeUrl::ENDPOINT;

#[test]
fn delta_start_is_as_envoy_starts() {
    let mut t = Talk::new(Mode::Delta);
    t.subscribe(&CDS, &["*"]);
    assert_eq!(t.said(), ["Cluster sub=[] unsub=[] init={} nonce='' node"]);
    let cds = t.response(&CDS, "1", "n1", &["c1", "c2"]);
    t.subscribe(&EDS, &["c1"]);
    t.subscribe(&EDS, &["c2"]);
    t.ack(cds);
    assert_eq!(
        t.said(),
        ["ClusterLoadAssignment sub=[c1,c2] unsub=[] init={} nonce=''", "Cluster sub=[] unsub=[] init={} nonce='n1'"]
    );
    let eds = t.response(&EDS, "1", "n2", &["c1", "c2"]);
    t.ack(eds);
    let cds = t.response(&CDS, "2", "n3", &["c3"]);
    t.unsubscribe(&EDS, &["c1"]);
    t.subscribe(&EDS, &["c3"]);
    t.ack(cds);
    assert_eq!(
        t.said(),
        [
            "ClusterLoadAssignment sub=[] unsub=[] init={} nonce='n2'",
            "ClusterLoadAssignment sub=[c3] unsub=[c1] init={} nonce=''",
            "Cluster sub=[] unsub=[] init={} nonce='n3'"
        ]
    );
}

#[test]
fn sotw_start_is_as_envoy_starts() {
    let mut t = Talk::new(Mode::Sotw);
    t.subscribe(&CDS, &["*"]);
    assert_eq!(t.said(), ["Cluster v='' names=[] nonce='' node"]);
    let cds = t.response(&CDS, "1", "n1", &["c1", "c2"]);
    t.subscribe(&EDS, &["c1", "c2"]);
    assert_eq!(t.said(), ["ClusterLoadAssignment v='' names=[c1,c2] nonce=''"]);
    let eds = t.response(&EDS, "1", "n2", &["c1", "c2"]);
    t.ack(cds);
    t.ack(eds);
    assert_eq!(t.said(), ["Cluster v='1' names=[] nonce='n1'", "ClusterLoadAssignment v='1' names=[c1,c2] nonce='n2'"]);
    let cds = t.response(&CDS, "2", "n3", &["c1", "c3", "c4"]);
    t.subscribe(&EDS, &["c3"]);
    t.nack(cds, &["c4"]);
    assert_eq!(
        t.said(),
        ["ClusterLoadAssignment v='1' names=[c1,c2,c3] nonce='n2'", "Cluster v='1' names=[] nonce='n3' ERR='bad'"]
    );
    t.unsubscribe(&EDS, &["c1", "c2", "c3"]);
    assert_eq!(t.said(), ["ClusterLoadAssignment v='1' names=[] nonce='n2'"]);
}

#[test]
fn delta_resumes_with_what_was_taken() {
    let mut t = Talk::new(Mode::Delta);
    t.subscribe(&CDS, &["*"]);
    t.subscribe(&EDS, &["a", "b", "c"]);
    t.said();
    let cds = t.offer(&CDS, "1", "n1", &["a", "b", "c"], &[]).unwrap();
    let eds = t.response(&EDS, "1", "n2", &["a", "b", "c", "stranger"]);
    t.ack(cds);
    t.ack(eds);
    // b is refused, c is gone.
    let cds = t.offer(&CDS, "2", "n3", &["a", "b"], &["c"]).unwrap();
    t.nack(cds, &["b"]);
    t.unsubscribe(&EDS, &["c"]);
    // Nothing of this one was taken.
    let eds = t.offer(&EDS, "3", "n4", &["a"], &["b"]).unwrap();
    t.nack(eds, &[]);
    t.reconnect();
    assert_eq!(
        t.said(),
        [
            "Cluster sub=[] unsub=[] init={a:2,b:1} nonce='' node",
            "ClusterLoadAssignment sub=[a,b] unsub=[] init={a:1,b:1} nonce=''"
        ]
    );
}

#[test]
fn sotw_resumes_with_the_version_taken_and_no_nonce() {
    let mut t = Talk::new(Mode::Sotw);
    t.subscribe(&CDS, &["*"]);
    t.said();
    let first = t.response(&CDS, "1", "n1", &["a"]);
    t.ack(first);
    // Never said on the old stream, and yet taken.
    t.reconnect();
    assert_eq!(t.said(), ["Cluster v='1' names=[] nonce='' node"]);
    let second = t.response(&CDS, "2", "m1", &["a"]);
    t.machine.close();
    t.ack(second);
    t.stream = t.machine.open();
    assert_eq!(t.said(), ["Cluster v='2' names=[] nonce='' node"]);
}

#[test]
fn an_answer_to_an_earlier_stream_is_not_sent() {
    let mut t = Talk::new(Mode::Sotw);
    t.subscribe(&CDS, &["*"]);
    t.said();
    let old = t.response(&CDS, "1", "n1", &["a"]);
    let old_stream = t.stream;
    t.reconnect();
    assert_eq!(t.said(), ["Cluster v='' names=[] nonce='' node"]);
    t.ack(old);
    assert_eq!(t.said(), [""; 0]);
    assert_eq!(t.machine.next_request(old_stream), Next::Ended);
}

#[test]
fn a_delta_stream_asks_for_a_type_once_it_is_known_what_is_held() {
    let mut t = Talk::new(Mode::Delta);
    t.subscribe(&CDS, &["*"]);
    t.subscribe(&EDS, &["a"]);
    t.said();
    let first = t.response(&CDS, "1", "n1", &["a", "b"]);
    let second = t.response(&CDS, "2", "n2", &["b"]);
    t.reconnect();
    assert_eq!(t.said(), ["ClusterLoadAssignment sub=[a] unsub=[] init={} nonce='' node"]);
    t.ack(first);
    t.subscribe(&CDS, &["x"]);
    assert_eq!(t.said(), [""; 0]);
    t.nack(second, &["b"]);
    assert_eq!(t.said(), ["Cluster sub=[*,x] unsub=[] init={a:1,b:1} nonce=''"]);
}

#[test]
fn changes_that_cancel_out_are_not_said() {
    for mode in [Mode::Delta, Mode::Sotw] {
        let mut t = Talk::new(mode);
        t.subscribe(&EDS, &["a"]);
        t.said();
        t.subscribe(&EDS, &["a"]);
        t.subscribe(&EDS, &["b"]);
        t.unsubscribe(&EDS, &["b", "never"]);
        t.unsubscribe(&CDS, &["x"]);
        assert_eq!(t.said(), [""; 0], "{mode:?}");
        t.subscribe(&CDS, &["x"]);
        t.unsubscribe(&CDS, &["x"]);
        assert_eq!(t.said(), [""; 0], "{mode:?}");
    }
}

#[test]
fn a_name_dropped_and_wanted_again_is_asked_for_anew() {
    let mut t = Talk::new(Mode::Delta);
    t.subscribe(&EDS, &["a", "b"]);
    t.said();
    t.unsubscribe(&EDS, &["a"]);
    t.subscribe(&EDS, &["a", "c"]);
    assert_eq!(
        t.said(),
        [
            "ClusterLoadAssignment sub=[c] unsub=[a] init={} nonce=''",
            "ClusterLoadAssignment sub=[a] unsub=[] init={} nonce=''"
        ]
    );
    t.unsubscribe(&EDS, &["a"]);
    t.subscribe(&EDS, &["a"]);
    t.unsubscribe(&EDS, &["a"]);
    assert_eq!(t.said(), ["ClusterLoadAssignment sub=[] unsub=[a] init={} nonce=''"]);

    let mut t = Talk::new(Mode::Sotw);
    t.subscribe(&EDS, &["a", "b"]);
    t.said();
    t.unsubscribe(&EDS, &["a"]);
    t.subscribe(&EDS, &["a"]);
    assert_eq!(
        t.said(),
        ["ClusterLoadAssignment v='' names=[b] nonce=''", "ClusterLoadAssignment v='' names=[a,b] nonce=''"]
    );
}

#[test]
fn the_wildcard_is_said_aloud_once_names_stand_beside_it() {
    let mut t = Talk::new(Mode::Delta);
    t.subscribe(&CDS, &["*"]);
    t.said();
    t.subscribe(&CDS, &["on-demand"]);
    assert_eq!(t.said(), ["Cluster sub=[on-demand] unsub=[] init={} nonce=''"]);
    t.reconnect();
    assert_eq!(t.said(), ["Cluster sub=[*,on-demand] unsub=[] init={} nonce='' node"]);
    t.unsubscribe(&CDS, &["*"]);
    assert_eq!(t.said(), ["Cluster sub=[] unsub=[*] init={} nonce=''"]);

    let mut t = Talk::new(Mode::Sotw);
    t.subscribe(&CDS, &["*"]);
    t.said();
    t.subscribe(&CDS, &["x"]);
    assert_eq!(t.said(), ["Cluster v='' names=[*,x] nonce=''"]);
    t.unsubscribe(&CDS, &["x"]);
    assert_eq!(t.said(), ["Cluster v='' names=[*] nonce=''"]);
    // A new stream has heard no name, and begins anew.
    t.reconnect();
    assert_eq!(t.said(), ["Cluster v='' names=[] nonce='' node"]);
}

#[test]
fn a_sotw_change_before_an_answer_is_no_second_answer() {
    let mut t = Talk::new(Mode::Sotw);
    t.subscribe(&EDS, &["a"]);
    t.said();
    let first = t.response(&EDS, "1", "n1", &["a"]);
    t.ack(first);
    t.said();
    let second = t.response(&EDS, "2", "n2", &["a"]);
    t.subscribe(&EDS, &["b"]);
    t.ack(second);
    t.subscribe(&EDS, &["c"]);
    assert_eq!(
        t.said(),
        [
            "ClusterLoadAssignment v='1' names=[a,b,c] nonce='n1'",
            "ClusterLoadAssignment v='2' names=[a,b,c] nonce='n2'"
        ]
    );
    // The other way round, the answer does not carry the change.
    let third = t.response(&EDS, "3", "n3", &["a"]);
    t.ack(third);
    t.subscribe(&EDS, &["d"]);
    assert_eq!(
        t.said(),
        [
            "ClusterLoadAssignment v='3' names=[a,b,c] nonce='n3'",
            "ClusterLoadAssignment v='3' names=[a,b,c,d] nonce='n3'"
        ]
    );
}

#[test]
fn answers_out_of_order_do_not_turn_back_the_version() {
    let mut t = Talk::new(Mode::Sotw);
    t.subscribe(&CDS, &["*"]);
    t.said();
    let first = t.response(&CDS, "1", "n1", &["a"]);
    let second = t.response(&CDS, "2", "n2", &["a"]);
    t.ack(second);
    t.ack(first);
    t.subscribe(&CDS, &["x"]);
    assert_eq!(
        t.said(),
        [
            "Cluster v='2' names=[] nonce='n2'",
            "Cluster v='1' names=[] nonce='n1'",
            "Cluster v='2' names=[*,x] nonce='n2'"
        ]
    );
}

#[test]
fn a_type_nobody_asked_for_is_passed_over_on_the_aggregated_stream() {
    for mode in [Mode::Delta, Mode::Sotw] {
        let mut t = Talk::new(mode);
        t.subscribe(&CDS, &["*"]);
        t.said();
        // A refusal would be the first request of its type, and one without names asks for everything.
        assert!(t.offer(&TypeUrl::from("garbage"), "1", "n1", &["a"], &[]).is_none());
        assert!(t.offer(&EDS, "1", "n2", &["a"], &[]).is_none());
        assert_eq!(t.said(), [""; 0], "{mode:?}");
        t.subscribe(&EDS, &["a"]);
        let first = t.said();
        let expected = match mode {
            Mode::Delta => "ClusterLoadAssignment sub=[a] unsub=[] init={} nonce=''",
            Mode::Sotw => "ClusterLoadAssignment v='' names=[a] nonce=''",
        };
        assert_eq!(first, [expected]);
    }
}

#[test]
fn a_stream_of_one_type_refuses_another_without_losing_its_names() {
    let sds = TypeUrl::SECRET;
    for mode in [Mode::Delta, Mode::Sotw] {
        let mut t = Talk::only(mode, sds.clone());
        assert_eq!(
            t.machine.subscribe(&CDS, Subscription::Wildcard),
            Err(SubscribeError::OtherType { wanted: CDS, only: sds.clone() })
        );
        assert!(t.offer(&CDS, "0", "n0", &["x"], &[]).is_none(), "nothing was asked yet");
        assert_eq!(t.said(), [""; 0]);
        t.subscribe(&sds, &["a", "b"]);
        t.said();
        let first = t.response(&sds, "1", "n1", &["a", "b"]);
        t.ack(first);
        t.said();
        assert!(t.offer(&CDS, "2", "n2", &["x"], &[]).is_none());
        t.subscribe(&sds, &["c"]);
        let why = format!("ERR='this stream is for {sds}, but the response is of type {CDS}'");
        let expected = match mode {
            Mode::Delta => [
                format!("Secret sub=[] unsub=[] init={{}} nonce='n2' {why}"),
                "Secret sub=[c] unsub=[] init={} nonce=''".into(),
            ],
            Mode::Sotw => {
                [format!("Secret v='1' names=[a,b] nonce='n2' {why}"), "Secret v='1' names=[a,b,c] nonce='n2'".into()]
            }
        };
        assert_eq!(t.said(), expected);
    }
}

#[test]
fn sotw_resumes_without_a_version_that_does_not_speak_for_what_is_wanted() {
    let begun = || {
        let mut t = Talk::new(Mode::Sotw);
        t.subscribe(&EDS, &["a", "b", "none"]);
        t.said();
        let first = t.response(&EDS, "1", "n1", &["a", "b"]);
        t.ack(first);
        t.said();
        t
    };
    let resumed = |t: &mut Talk| {
        t.reconnect();
        t.said().remove(0)
    };
    // Nothing was added: as Envoy. Of a name that was asked for first and did not come, the version says that it is not there.
    let mut t = begun();
    assert_eq!(resumed(&mut t), "ClusterLoadAssignment v='1' names=[a,b,none] nonce='' node");
    t.unsubscribe(&EDS, &["a", "none"]);
    assert_eq!(resumed(&mut t), "ClusterLoadAssignment v='1' names=[b] nonce='' node");
    // Added while there was no stream, or on one that ended before the server said anything of it.
    t.machine.close();
    t.subscribe(&EDS, &["c"]);
    assert_eq!(resumed(&mut t), "ClusterLoadAssignment v='' names=[b,c] nonce='' node");
    let mut t = begun();
    t.subscribe(&EDS, &["c"]);
    t.said();
    let partial = t.response(&EDS, "2", "n2", &["a"]);
    t.ack(partial);
    assert_eq!(resumed(&mut t), "ClusterLoadAssignment v='' names=[a,b,c,none] nonce='' node");
    // Dropped and wanted again: the consumer no longer has it.
    let mut t = begun();
    t.machine.close();
    t.unsubscribe(&EDS, &["a"]);
    t.subscribe(&EDS, &["a"]);
    assert_eq!(resumed(&mut t), "ClusterLoadAssignment v='' names=[a,b,none] nonce='' node");
    // Refused in part: what runs is of two versions. Once it was sent anew, all is of one.
    let mut t = begun();
    let second = t.response(&EDS, "2", "n2", &["a", "b"]);
    t.nack(second, &["b"]);
    assert_eq!(resumed(&mut t), "ClusterLoadAssignment v='' names=[a,b,none] nonce='' node");
    let third = t.response(&EDS, "3", "m1", &["a", "b"]);
    t.ack(third);
    assert_eq!(resumed(&mut t), "ClusterLoadAssignment v='3' names=[a,b,none] nonce='' node");
    // Refused as a whole: the version before runs.
    let mut t = begun();
    let second = t.response(&EDS, "2", "n2", &["a", "b"]);
    t.nack(second, &[]);
    assert_eq!(resumed(&mut t), "ClusterLoadAssignment v='1' names=[a,b,none] nonce='' node");
    // A later one that does not bring what was refused does not speak for it.
    let second = t.response(&EDS, "2", "m1", &["a", "b"]);
    let third = t.response(&EDS, "3", "m2", &["b"]);
    t.nack(second, &[]);
    t.ack(third);
    assert_eq!(resumed(&mut t), "ClusterLoadAssignment v='' names=[a,b,none] nonce='' node");
}

#[test]
fn sotw_resumes_a_wildcard_only_with_a_version_that_was_taken_as_a_whole() {
    let mut t = Talk::new(Mode::Sotw);
    t.subscribe(&CDS, &["*"]);
    t.said();
    let first = t.response(&CDS, "1", "n1", &["a"]);
    t.ack(first);
    let second = t.response(&CDS, "2", "n2", &["a", "b"]);
    t.nack(second, &["b"]);
    t.reconnect();
    assert_eq!(t.said(), ["Cluster v='' names=[] nonce='' node"]);
    let third = t.response(&CDS, "3", "m1", &["a"]);
    t.ack(third);
    t.reconnect();
    assert_eq!(t.said(), ["Cluster v='3' names=[] nonce='' node"]);
    // Beside names, the wildcard may have been under way when the server spoke.
    let mut t = Talk::new(Mode::Sotw);
    t.subscribe(&CDS, &["a"]);
    t.said();
    t.subscribe(&CDS, &["*"]);
    let first = t.response(&CDS, "1", "n1", &["a"]);
    t.ack(first);
    t.reconnect();
    assert_eq!(t.said(), ["Cluster v='' names=[*,a] nonce='' node"]);
}

#[test]
fn a_sotw_wildcard_given_up_and_wanted_again_is_asked_for_by_its_name() {
    let mut t = Talk::new(Mode::Sotw);
    t.subscribe(&CDS, &["*"]);
    t.said();
    let first = t.response(&CDS, "1", "n1", &["a"]);
    t.ack(first);
    t.said();
    t.unsubscribe(&CDS, &["*"]);
    assert_eq!(t.said(), [""; 0], "an empty list would ask for everything once more");
    t.subscribe(&CDS, &["*"]);
    assert_eq!(t.said(), ["Cluster v='' names=[*] nonce='n1'"]);
    t.unsubscribe(&CDS, &["*"]);
    t.subscribe(&CDS, &["*"]);
    assert_eq!(t.said(), ["Cluster v='' names=[] nonce='n1'", "Cluster v='' names=[*] nonce='n1'"]);
}

#[test]
fn what_is_held_follows_the_order_of_responses_and_not_of_answers() {
    let mut t = Talk::new(Mode::Delta);
    t.subscribe(&CDS, &["*"]);
    t.subscribe(&EDS, &["x"]);
    t.said();
    let adds = t.response(&CDS, "1", "n1", &["c", "d"]);
    let removes = t.offer(&CDS, "2", "n2", &["d"], &["c"]).unwrap();
    t.ack(removes);
    t.ack(adds);
    // Taken back and wanted again while it was under way: the server sends it anew, unless the stream ends before.
    let late = t.response(&EDS, "1", "n3", &["x"]);
    t.unsubscribe(&EDS, &["x"]);
    t.subscribe(&EDS, &["x"]);
    t.ack(late);
    t.reconnect();
    assert_eq!(
        t.said(),
        [
            "Cluster sub=[] unsub=[] init={d:2} nonce='' node",
            "ClusterLoadAssignment sub=[x] unsub=[] init={x:} nonce=''"
        ]
    );
}

#[test]
fn a_name_that_a_delta_response_has_twice_is_refused_and_not_held() {
    let mut t = Talk::new(Mode::Delta);
    t.subscribe(&CDS, &["*"]);
    t.said();
    let first = t.response(&CDS, "1", "n1", &["a", "b", "c", "d"]);
    t.ack(first);
    t.said();
    let both = t.offer(&CDS, "2", "n2", &["a", "b", "b", "d"], &["a"]).unwrap();
    t.ack(both);
    let detail = "duplicate name a, b found in the union of added+removed resources";
    assert_eq!(t.said(), [format!("Cluster sub=[] unsub=[] init={{}} nonce='n2' ERR='{detail}'")]);
    // The consumer's own words go first.
    let third = t.offer(&CDS, "3", "n3", &["a", "a", "d"], &[]).unwrap();
    t.nack(third, &["d"]);
    assert_eq!(t.said(), ["Cluster sub=[] unsub=[] init={} nonce='n3' ERR='bad'"]);
    t.reconnect();
    assert_eq!(t.said(), ["Cluster sub=[] unsub=[] init={a:,b:,c:1,d:2} nonce='' node"]);
}

#[test]
fn late_resources_of_a_dropped_name_are_delivered_but_not_held() {
    let mut t = Talk::new(Mode::Delta);
    t.subscribe(&EDS, &["a", "b"]);
    t.said();
    t.unsubscribe(&EDS, &["b"]);
    let late = t.response(&EDS, "1", "n1", &["a", "b"]);
    t.ack(late);
    t.reconnect();
    assert_eq!(t.said(), ["ClusterLoadAssignment sub=[a] unsub=[] init={a:1} nonce='' node"]);
    // When nothing of a type is wanted any more, the next stream is not asked for it: that would be the wildcard.
    t.unsubscribe(&EDS, &["a"]);
    t.reconnect();
    assert_eq!(t.said(), [""; 0]);
}

#[test]
fn the_node_goes_into_every_request_if_so_configured() {
    let mut machine = Machine::new(Mode::Delta, None, false);
    machine.subscribe(&CDS, Subscription::Wildcard).unwrap();
    machine.subscribe(&EDS, Subscription::names(["a"])).unwrap();
    let stream = machine.open();
    for _ in 0..2 {
        assert!(matches!(machine.next_request(stream), Next::Send(Request { node: true, .. })));
    }
}

#[test]
fn a_server_that_sends_without_reading_is_not_read_on() {
    let mut t = Talk::new(Mode::Delta);
    t.subscribe(&CDS, &["*"]);
    t.said();
    for n in 0..MAX_WAITING {
        assert!(t.machine.has_room());
        let response = t.response(&CDS, "1", &n.to_string(), &["a"]);
        t.ack(response);
    }
    assert!(!t.machine.has_room());
    assert_eq!(t.said().len(), MAX_WAITING);
    assert!(t.machine.has_room());
}
