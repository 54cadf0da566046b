//! Resources that expire, live by other names, or do not exist; types that are held back.

use std::time::Duration;

use super::tests::Talk;
use super::*;
use crate::event::Resource;

const CDS: TypeUrl = TypeUrl::CLUSTER;
const EDS: TypeUrl = TypeUrl::ENDPOINT;
const VHDS: TypeUrl = TypeUrl::VIRTUAL_HOST;
const SECOND: Duration = Duration::from_secs(1);

fn with_ttl(name: &str, version: &str, seconds: u64) -> Resource {
    let ttl = (seconds > 0).then(|| SECOND * u32::try_from(seconds).unwrap());
    let body = Some(Default::default());
    Resource { name: name.into(), version: version.into(), ttl, body, ..Resource::default() }
}

fn heartbeat(name: &str, version: &str, seconds: u64) -> Resource {
    Resource { body: None, ..with_ttl(name, version, seconds) }
}

/// What has expired after that many seconds more.
fn expired_after(t: &mut Talk, seconds: u32) -> Vec<String> {
    t.now += SECOND * seconds;
    let mut names = Vec::new();
    while let Some(expired) = t.machine.expire(t.now) {
        assert_eq!((expired.kind, expired.resources.len()), (Kind::Delta, 0));
        names.extend(expired.removed);
    }
    names
}

#[test]
fn a_resource_expires_unless_it_is_renewed() {
    for mode in [Mode::Delta, Mode::Sotw] {
        let mut t = Talk::new(mode);
        t.subscribe(&EDS, &["a", "b", "c"]);
        t.said();
        let first = vec![with_ttl("a", "1", 10), with_ttl("b", "1", 20), with_ttl("c", "1", 0)];
        let (first, _) = t.resources(&EDS, "1", "n1", first);
        // It counts from when it was taken.
        assert_eq!(expired_after(&mut t, 100), [""; 0], "{mode:?}");
        t.ack(first);
        assert_eq!(expired_after(&mut t, 9), [""; 0], "{mode:?}");
        let (beat, delivered) = t.resources(&EDS, "1", "n2", vec![heartbeat("a", "1", 10)]);
        assert_eq!(delivered.kind, Kind::Delta, "a heartbeat takes nothing away");
        assert!(delivered.resources[0].heartbeat);
        t.ack(beat);
        assert_eq!(expired_after(&mut t, 9), [""; 0], "{mode:?}");
        assert_eq!(expired_after(&mut t, 2), ["a", "b"], "{mode:?}");
        assert_eq!(t.machine.next_expiry(), None);
        // What has expired is no longer held.
        t.reconnect();
        let again = match mode {
            Mode::Delta => "ClusterLoadAssignment sub=[a,b,c] unsub=[] init={c:1} nonce='' node",
            // The version stands for what the consumer no longer has.
            Mode::Sotw => "ClusterLoadAssignment v='' names=[a,b,c] nonce='' node",
        };
        assert_eq!(t.said(), [again]);
    }
}

#[test]
fn a_heartbeat_of_another_version_or_an_unknown_name_renews_nothing() {
    for mode in [Mode::Delta, Mode::Sotw] {
        let mut t = Talk::new(mode);
        t.subscribe(&EDS, &["a"]);
        t.said();
        let (first, _) = t.resources(&EDS, "1", "n1", vec![with_ttl("a", "1", 10)]);
        t.ack(first);
        t.now += SECOND * 5;
        let (beat, _) = t.resources(&EDS, "2", "n2", vec![heartbeat("a", "2", 10), heartbeat("x", "2", 1)]);
        t.ack(beat);
        assert_eq!(expired_after(&mut t, 5), ["a"], "{mode:?}");
    }
}

#[test]
fn what_is_being_replaced_does_not_expire_and_what_is_refused_goes_on_as_it_was() {
    for mode in [Mode::Delta, Mode::Sotw] {
        let mut t = Talk::new(mode);
        t.subscribe(&EDS, &["a", "b"]);
        t.said();
        let (first, _) = t.resources(&EDS, "1", "n1", vec![with_ttl("a", "1", 10), with_ttl("b", "1", 10)]);
        t.ack(first);
        let (second, _) = t.resources(&EDS, "2", "n2", vec![with_ttl("a", "2", 10), with_ttl("b", "2", 10)]);
        assert_eq!(expired_after(&mut t, 11), [""; 0], "{mode:?}");
        t.nack(second, &["b"]);
        assert_eq!(expired_after(&mut t, 0), ["b"], "{mode:?}");
        // A successor without a time to live stays.
        let (third, _) = t.resources(&EDS, "3", "n3", vec![with_ttl("a", "3", 0)]);
        t.ack(third);
        assert_eq!(expired_after(&mut t, 100), [""; 0], "{mode:?}");
    }
}

#[test]
fn with_two_successors_under_way_the_answer_to_the_first_starts_no_clock() {
    for mode in [Mode::Delta, Mode::Sotw] {
        for refuse_both in [false, true] {
            let mut t = Talk::new(mode);
            t.subscribe(&EDS, &["a"]);
            t.said();
            let (first, _) = t.resources(&EDS, "1", "n1", vec![with_ttl("a", "1", 10)]);
            t.ack(first);
            let (second, _) = t.resources(&EDS, "2", "n2", vec![with_ttl("a", "2", 10)]);
            let (third, _) = t.resources(&EDS, "3", "n3", vec![with_ttl("a", "3", 10)]);
            t.nack(second, &[]);
            assert_eq!(expired_after(&mut t, 60), [""; 0], "{mode:?}: the third waits behind it");
            if refuse_both {
                t.nack(third, &["a"]);
                assert_eq!(expired_after(&mut t, 0), ["a"], "{mode:?}");
            } else {
                t.ack(third);
                assert_eq!(expired_after(&mut t, 9), [""; 0], "{mode:?}");
                assert_eq!(expired_after(&mut t, 1), ["a"], "{mode:?}");
            }
        }
    }
}

#[test]
fn the_time_of_the_younger_successor_counts_whichever_is_answered_last() {
    for mode in [Mode::Delta, Mode::Sotw] {
        let mut t = Talk::new(mode);
        t.subscribe(&EDS, &["a"]);
        t.said();
        let (second, _) = t.resources(&EDS, "2", "n2", vec![with_ttl("a", "2", 10)]);
        let (third, _) = t.resources(&EDS, "3", "n3", vec![with_ttl("a", "3", 100)]);
        t.ack(third);
        t.ack(second);
        assert_eq!(expired_after(&mut t, 99), [""; 0], "{mode:?}");
        assert_eq!(expired_after(&mut t, 1), ["a"], "{mode:?}");
    }
}

#[test]
fn what_was_taken_of_a_response_refused_in_part_is_renewed_by_its_heartbeats() {
    for mode in [Mode::Delta, Mode::Sotw] {
        let mut t = Talk::new(mode);
        t.subscribe(&EDS, &["a", "b"]);
        t.said();
        let (second, _) = t.resources(&EDS, "2", "n2", vec![with_ttl("a", "2", 10), with_ttl("b", "2", 10)]);
        t.nack(second, &["b"]);
        t.now += SECOND * 9;
        let (beat, _) = t.resources(&EDS, "2", "n3", vec![heartbeat("a", "2", 10), heartbeat("b", "2", 10)]);
        t.ack(beat);
        assert_eq!(expired_after(&mut t, 9), [""; 0], "{mode:?}");
        assert_eq!(expired_after(&mut t, 1), ["a"], "{mode:?}");
        if mode == Mode::Sotw {
            t.reconnect();
            // That a heartbeat of version 2 was answered does not mean that it runs.
            assert_eq!(t.said(), ["ClusterLoadAssignment v='' names=[a,b] nonce='' node"]);
        }
    }
}

#[test]
fn a_successor_without_a_time_to_live_may_follow_before_its_predecessor_is_applied() {
    for mode in [Mode::Delta, Mode::Sotw] {
        let mut t = Talk::new(mode);
        t.subscribe(&EDS, &["a"]);
        t.said();
        let (first, _) = t.resources(&EDS, "1", "n1", vec![with_ttl("a", "1", 10)]);
        let (second, _) = t.resources(&EDS, "2", "n2", vec![with_ttl("a", "2", 0)]);
        t.ack(first);
        t.ack(second);
        assert_eq!(expired_after(&mut t, 100), [""; 0], "{mode:?}");
    }
}

#[test]
fn a_refused_successor_of_what_is_no_longer_wanted_brings_nothing_back() {
    for mode in [Mode::Delta, Mode::Sotw] {
        let mut t = Talk::new(mode);
        t.subscribe(&EDS, &["a"]);
        t.said();
        let (first, _) = t.resources(&EDS, "1", "n1", vec![with_ttl("a", "1", 10)]);
        t.ack(first);
        let (second, _) = t.resources(&EDS, "2", "n2", vec![with_ttl("a", "2", 10)]);
        t.unsubscribe(&EDS, &["a"]);
        t.nack(second, &[]);
        assert_eq!(expired_after(&mut t, 100), [""; 0], "{mode:?}");
    }
}

#[test]
fn what_is_gone_otherwise_does_not_expire() {
    let mut t = Talk::new(Mode::Delta);
    t.subscribe(&EDS, &["a", "b"]);
    t.said();
    let (first, _) = t.resources(&EDS, "1", "n1", vec![with_ttl("a", "1", 10), with_ttl("b", "1", 10)]);
    t.ack(first);
    let removed = t.offer(&EDS, "2", "n2", &[], &["a"]).unwrap();
    t.ack(removed);
    t.unsubscribe(&EDS, &["b"]);
    assert_eq!(t.machine.next_expiry(), None);

    let mut t = Talk::new(Mode::Sotw);
    t.subscribe(&CDS, &["*"]);
    t.said();
    let (first, _) = t.resources(&CDS, "1", "n1", vec![with_ttl("a", "1", 10), with_ttl("b", "1", 10)]);
    t.ack(first);
    let (second, _) = t.resources(&CDS, "2", "n2", vec![with_ttl("b", "2", 10)]);
    t.ack(second);
    assert_eq!(expired_after(&mut t, 10), ["b"]);
    // A time to live without an end is none.
    let mut endless = with_ttl("c", "3", 1);
    endless.ttl = Some(Duration::MAX);
    let (third, _) = t.resources(&CDS, "3", "n3", vec![endless]);
    t.ack(third);
    assert_eq!(t.machine.next_expiry(), None);
}

#[test]
fn a_virtual_host_is_held_as_long_as_one_of_its_names_is_wanted() {
    let mut t = Talk::new(Mode::Delta);
    t.subscribe(&VHDS, &["r/a.com", "r/b.com", "r/none.com"]);
    t.said();
    let host = Resource { aliases: vec!["r/a.com".into(), "r/b.com".into()], ..with_ttl("r/host", "1", 0) };
    let none = Resource { aliases: vec!["r/none.com".into()], ..heartbeat("r/none.com", "", 0) };
    let (both, delivered) = t.resources(&VHDS, "1", "n1", vec![host, none]);
    let absent = &delivered.resources[1];
    assert!(absent.body.is_none() && !absent.heartbeat, "the server has no such host");
    t.ack(both);
    t.unsubscribe(&VHDS, &["r/a.com"]);
    t.reconnect();
    assert_eq!(t.said(), ["VirtualHost sub=[r/b.com,r/none.com] unsub=[] init={r/host:1} nonce='' node"]);
    t.unsubscribe(&VHDS, &["r/b.com"]);
    t.reconnect();
    assert_eq!(t.said(), ["VirtualHost sub=[r/none.com] unsub=[] init={} nonce='' node"]);
}

#[test]
fn a_type_that_is_held_back_says_nothing_and_then_everything_at_once() {
    let mut t = Talk::new(Mode::Delta);
    t.subscribe(&CDS, &["*"]);
    t.subscribe(&EDS, &["a"]);
    t.said();
    t.machine.pause(&EDS);
    t.machine.pause(&EDS);
    let eds = t.response(&EDS, "1", "n1", &["a"]);
    t.ack(eds);
    t.subscribe(&EDS, &["b"]);
    t.subscribe(&EDS, &["c"]);
    t.unsubscribe(&EDS, &["a"]);
    let cds = t.response(&CDS, "1", "n2", &["x"]);
    t.ack(cds);
    assert_eq!(t.machine.waiting(), 1);
    assert_eq!(t.said(), ["Cluster sub=[] unsub=[] init={} nonce='n2'"]);
    t.machine.resume(&EDS);
    assert_eq!(t.said(), [""; 0]);
    t.machine.resume(&EDS);
    assert_eq!(
        t.said(),
        [
            "ClusterLoadAssignment sub=[] unsub=[] init={} nonce='n1'",
            "ClusterLoadAssignment sub=[b,c] unsub=[a] init={} nonce=''"
        ]
    );
}

#[test]
fn names_of_the_xdstp_scheme_are_refused_and_nothing_of_the_call_is_subscribed() {
    let mut t = Talk::new(Mode::Delta);
    let names = Subscription::names(["a", "xdstp://authority/envoy.config.endpoint.v3.ClusterLoadAssignment/c/*"]);
    let error = t.machine.subscribe(&EDS, names).unwrap_err().to_string();
    assert!(error.contains("c/*\" cannot be subscribed"), "{error}");
    assert_eq!(t.said(), [""; 0]);
}
