//! Which route a request takes and what the route does to it.

use outrigger_tests::origin::Origin;

use super::support::*;
use http::Method;

#[tokio::test]
async fn a_request_goes_where_its_host_says() {
    let origin = Origin::start("v1").unwrap();
    let host = |name: &str, domains: &str| {
        let routes = format!(
            "{{ match: {{ prefix: / }}, direct_response: {{ status: 200, body: {{ inline_string: {name} }} }} }}"
        );
        format!("{{ name: {name}, domains: [{domains}], routes: [{routes}] }}")
    };
    let hosts = [
        host("exact", "a.example.com, '[::1]:80'"),
        host("port", "'a.example.com:8080'"),
        host("long-suffix", "'*.b.example.com'"),
        host("suffix", "'*.example.com'"),
        host("long-prefix", "'a.test.*'"),
        host("prefix", "'a.*'"),
        host("rest", "'*'"),
    ]
    .join(", ");
    let front = Front { hosts: &hosts, ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[origin.address()], "")).await;
    for way in WAYS {
        let mut client = bed.client(way).await;
        for (authority, expected) in [
            ("a.example.com", "exact"),
            ("A.Example.COM", "exact"),
            ("[::1]:80", "exact"),
            ("a.example.com:8080", "port"),
            ("a.example.com:8081", "prefix"),
            ("x.b.example.com", "long-suffix"),
            ("b.example.com", "suffix"),
            ("x.y.example.com", "suffix"),
            ("a.test.io", "long-prefix"),
            ("a.io", "prefix"),
            ("example.com", "rest"),
        ] {
            assert_eq!(client.get(authority, "/").await.text(), expected, "{authority} {way:?}");
        }
    }
}

#[tokio::test]
async fn the_first_route_that_matches_wins() {
    let route = |name: &str, matcher: &str| {
        format!("{{ match: {{ {matcher} }}, direct_response: {{ status: 200, body: {{ inline_string: {name} }} }} }}")
    };
    let header = |name: &str, matcher: &str| route(name, &format!("prefix: /h, headers: [{{ {matcher} }}]"));
    let query = |name: &str, matcher: &str| route(name, &format!("prefix: /q, query_parameters: [{{ {matcher} }}]"));
    let routes = [
        route("exact", "path: /exact"),
        route("regex", "safe_regex: { regex: '/r/[0-9]+' }"),
        route("insensitive", "prefix: /CASE, case_sensitive: false"),
        route("separated", "path_separated_prefix: /api"),
        header("h-exact", "name: x-a, string_match: { exact: one }"),
        header("h-ignore-case", "name: x-a, string_match: { exact: two, ignore_case: true }"),
        header("h-prefix", "name: x-a, string_match: { prefix: pre }"),
        header("h-suffix", "name: x-a, string_match: { suffix: fix }"),
        header("h-contains", "name: x-a, string_match: { contains: mid }"),
        header("h-regex", "name: x-a, string_match: { safe_regex: { regex: 'r[0-9]+' } }"),
        header("h-range", "name: x-n, range_match: { start: 10, end: 20 }"),
        header("h-present", "name: x-p, present_match: true"),
        header("h-method", "name: ':method', string_match: { exact: DELETE }"),
        header("h-not", "name: x-q, string_match: { exact: 'no' }, invert_match: true"),
        header("h-absent", "name: x-q, present_match: true, invert_match: true"),
        query("q-exact", "name: v, string_match: { exact: '2' }"),
        query("q-present", "name: debug, present_match: true"),
        route("first", "prefix: /p/"),
        route("second", "prefix: /p/long"),
        route("rest", "prefix: /"),
    ]
    .join(", ");
    let bed = Bed::start(Front { routes: &routes, ..Front::default() }, "").await;
    for way in PLAIN {
        let mut client = bed.client(way).await;
        for (path, header, expected) in [
            ("/exact", None, "exact"),
            ("/exact?a=b", None, "exact"),
            ("/exact/", None, "rest"),
            ("/r/12", None, "regex"),
            ("/r/12?x", None, "regex"),
            ("/r/12x", None, "rest"),
            ("/x/r/12", None, "rest"),
            ("/case/a", None, "insensitive"),
            ("/EXACT", None, "rest"),
            ("/api", None, "separated"),
            ("/api/v1", None, "separated"),
            ("/apis", None, "rest"),
            ("/h", Some(("x-a", "one")), "h-exact"),
            ("/h", Some(("x-a", "TWO")), "h-ignore-case"),
            ("/h", Some(("x-a", "prefixed")), "h-prefix"),
            ("/h", Some(("x-a", "suffix")), "h-suffix"),
            ("/h", Some(("x-a", "amidst")), "h-contains"),
            ("/h", Some(("x-a", "r7")), "h-regex"),
            ("/h", Some(("x-n", "10")), "h-range"),
            ("/h", Some(("x-n", "20")), "h-absent"),
            ("/h", Some(("x-p", "")), "h-present"),
            ("/h", Some(("x-q", "yes")), "h-not"),
            ("/h", Some(("x-q", "no")), "rest"),
            ("/h", None, "h-absent"),
            ("/q?v=2", None, "q-exact"),
            ("/q?a=1&v=2&b=3", None, "q-exact"),
            ("/q?v=3", None, "rest"),
            ("/q?debug", None, "q-present"),
            ("/p/long", None, "first"),
        ] {
            let headers: Vec<(&str, &str)> = header.into_iter().collect();
            let reply = client.send(ask(Method::GET, "a", path, &headers)).await;
            assert_eq!(reply.text(), expected, "{path} {header:?} {way:?}");
        }
        let reply = client.send(ask(Method::DELETE, "a", "/h", &[("x-q", "no")])).await;
        assert_eq!(reply.text(), "h-method");
    }
}

#[tokio::test]
async fn a_canary_gets_its_weight() {
    let (v1, v2) = (Origin::start("v1").unwrap(), Origin::start("v2").unwrap());
    let routes = "{ match: { prefix: / }, route: { weighted_clusters: { clusters: [
        { name: v1, weight: 90, response_headers_to_add: [{ header: { key: x-picked, value: one } }] },
        { name: v2, weight: 10, request_headers_to_add: [{ header: { key: x-canary, value: 'yes' } }] },
        { name: none, weight: 0 }] } } }";
    let clusters = cluster("v1", &[v1.address()], "") + &cluster("v2", &[v2.address()], "") + &cluster("none", &[], "");
    let bed = Bed::start(Front { routes, ..Front::default() }, &clusters).await;
    for way in PLAIN {
        let mut client = bed.client(way).await;
        let mut canary = 0;
        for _ in 0..1000 {
            let reply = client.get("a", "/").await;
            assert_eq!(reply.status, 200);
            let (picked, marked) = (reply.header("x-picked").to_owned(), seen(&reply, "x-canary"));
            match reply.origin_version() {
                "v1" => assert_eq!((picked.as_str(), marked), ("one", serde_json::Value::Null)),
                _ => {
                    canary += 1;
                    assert_eq!((picked.as_str(), marked), ("", "yes".into()));
                }
            }
        }
        // Binomial(1000, 0.1) has a standard deviation of 9.5; five of them around the mean.
        assert!((53..=147).contains(&canary), "{canary} of 1000, {way:?}");
    }
    assert_eq!(stat(&bed.proxy, "cluster.none.upstream_rq_total").await, 0);
}

#[tokio::test]
async fn headers_are_added_replaced_and_removed() {
    let origin = Origin::start("v1").unwrap();
    let add = |key: &str, value: &str, action: &str| {
        format!("{{ header: {{ key: {key}, value: '{value}' }}, append_action: {action} }}")
    };
    let routes = format!(
        "{{ match: {{ prefix: / }}, route: {{ cluster: a }},
           request_headers_to_add: [{}, {}, {}, {}, {}, {}], request_headers_to_remove: [x-gone],
           response_headers_to_add: [{}, {}], response_headers_to_remove: [x-origin-version] }}",
        add("x-append", "route", "APPEND_IF_EXISTS_OR_ADD"),
        add("x-replace", "route", "OVERWRITE_IF_EXISTS_OR_ADD"),
        add("x-absent", "route", "ADD_IF_ABSENT"),
        add("x-existing", "route", "OVERWRITE_IF_EXISTS"),
        add("x-protocol", "%PROTOCOL% %REQ(X-APPEND)% 100%%", "OVERWRITE_IF_EXISTS_OR_ADD"),
        add("x-peer", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "OVERWRITE_IF_EXISTS_OR_ADD"),
        add("x-upstream", "%UPSTREAM_HOST%", "OVERWRITE_IF_EXISTS_OR_ADD"),
        add("content-type", "text/odd", "OVERWRITE_IF_EXISTS_OR_ADD"),
    );
    let hosts = format!(
        "{{ name: all, domains: ['*'], routes: [{routes}], request_headers_to_add: [{}] }}",
        add("x-append", "host", "APPEND_IF_EXISTS_OR_ADD")
    );
    let global = format!("request_headers_to_add: [{}]", add("x-append", "global", "APPEND_IF_EXISTS_OR_ADD"));
    let front = Front { hosts: &hosts, route_config: &global, ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[origin.address()], "")).await;
    for way in PLAIN {
        let mut client = bed.client(way).await;
        let sent = [("x-append", "client"), ("x-replace", "client"), ("x-absent", "client"), ("x-gone", "client")];
        let reply = client.send(ask(Method::GET, "a", "/", &sent)).await;
        assert_eq!(seen(&reply, "x-append"), serde_json::json!(["client", "route", "host", "global"]));
        assert_eq!(seen(&reply, "x-replace"), "route");
        assert_eq!(seen(&reply, "x-absent"), "client");
        assert!(seen(&reply, "x-existing").is_null() && seen(&reply, "x-gone").is_null());
        let protocol = if way.http2 { "HTTP/2" } else { "HTTP/1.1" };
        let value = seen(&reply, "x-protocol");
        assert!(value.as_str().is_some_and(|v| v.starts_with(protocol) && v.ends_with(" 100%")), "{value}");
        assert_eq!(seen(&reply, "x-peer"), "127.0.0.1");
        assert_eq!(reply.header("x-upstream"), origin.address().to_string());
        assert_eq!((reply.header("content-type"), reply.origin_version()), ("text/odd", ""));
    }
}

#[tokio::test]
async fn paths_and_hosts_are_rewritten() {
    let origin = Origin::start("v1").unwrap();
    let routes = "
        { match: { prefix: /old/ }, route: { cluster: a, prefix_rewrite: /new/ } },
        { match: { path: /one }, route: { cluster: a, prefix_rewrite: /two } },
        { match: { prefix: /re/ }, route: { cluster: a, regex_rewrite: { pattern: { regex: '^/re/([^/]+)/(.*)$' }, substitution: '/\\2/to/\\1' } } },
        { match: { prefix: /host }, route: { cluster: a, host_rewrite_literal: inner.test } },
        { match: { prefix: /from-header }, route: { cluster: a, host_rewrite_header: x-host } },
        { match: { prefix: / }, route: { cluster: a } }";
    let front = Front { routes, ..Front::default() };
    let bed = Bed::start(front, &cluster("a", &[origin.address()], "")).await;
    for way in PLAIN {
        let mut client = bed.client(way).await;
        for (path, expected, original) in [
            ("/old/x?q=1", "/new/x?q=1", "/old/x?q=1".into()),
            ("/one?q", "/two?q", "/one?q".into()),
            ("/re/a/b/c?q=1", "/b/c/to/a?q=1", "/re/a/b/c?q=1".into()),
            ("/plain//x/../y;z?q#", "/plain//x/../y;z?q", serde_json::Value::Null),
        ] {
            let reply = client.get("outer.test", path.trim_end_matches('#')).await;
            assert_eq!(reply.json()["path"], expected, "{way:?}");
            assert_eq!(seen(&reply, "x-envoy-original-path"), original);
            assert_eq!(seen(&reply, "host"), "outer.test");
        }
        assert_eq!(seen(&client.get("outer.test", "/host").await, "host"), "inner.test");
        let reply = client.send(ask(Method::GET, "outer.test", "/from-header", &[("x-host", "by.header")])).await;
        assert_eq!(seen(&reply, "host"), "by.header");
    }
}

#[tokio::test]
async fn redirects_are_made_from_their_parts() {
    let routes = "
        { match: { prefix: /path }, redirect: { path_redirect: /there } },
        { match: { prefix: /host }, redirect: { host_redirect: other.test, response_code: FOUND } },
        { match: { prefix: /https }, redirect: { https_redirect: true, response_code: TEMPORARY_REDIRECT } },
        { match: { prefix: /port }, redirect: { port_redirect: 8443, response_code: PERMANENT_REDIRECT } },
        { match: { prefix: /strip }, redirect: { host_redirect: other.test, strip_query: true, response_code: SEE_OTHER } },
        { match: { prefix: /prefix/ }, redirect: { prefix_rewrite: /other/ } }";
    let bed = Bed::start(Front { routes, ..Front::default() }, "").await;
    for way in PLAIN {
        let mut client = bed.client(way).await;
        for (path, status, location) in [
            ("/path?q=1", 301, "http://a.test:81/there?q=1"),
            ("/host/x?q=1", 302, "http://other.test/host/x?q=1"),
            ("/https/x", 307, "https://a.test:81/https/x"),
            ("/port/x", 308, "http://a.test:8443/port/x"),
            ("/strip/x?q=1", 303, "http://other.test/strip/x"),
            ("/prefix/x?q=1", 301, "http://a.test:81/other/x?q=1"),
        ] {
            let reply = client.get("a.test:81", path).await;
            assert_eq!((reply.status.as_u16(), reply.header("location")), (status, location), "{way:?}");
            assert!(reply.body.is_empty());
        }
        let reply = client.get("a.test:80", "/https/").await;
        assert_eq!(reply.header("location"), "https://a.test/https/", "a default port is left out");
    }
    at_least(&bed.proxy, "http.front.downstream_rq_3xx", 14).await;
}

#[tokio::test]
async fn the_proxy_answers_by_itself() {
    let routes = "
        { match: { prefix: /teapot }, direct_response: { status: 418, body: { inline_string: short and stout } },
          response_headers_to_add: [{ header: { key: x-pot, value: tea } }] },
        { match: { prefix: /empty }, direct_response: { status: 200 } }";
    let bed = Bed::start(Front { routes, ..Front::default() }, "").await;
    for way in WAYS {
        let mut client = bed.client(way).await;
        let reply = client.get("a", "/teapot").await;
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (418, "short and stout"), "{way:?}");
        assert_eq!((reply.header("content-type"), reply.header("content-length")), ("text/plain", "15"));
        assert_eq!((reply.header("x-pot"), reply.header("server")), ("tea", "envoy"));
        assert!(!reply.header("date").is_empty() && reply.header("x-envoy-upstream-service-time").is_empty());
        let head = client.send(ask(Method::HEAD, "a", "/teapot", &[])).await;
        assert_eq!((head.status.as_u16(), head.header("content-length"), head.body.len()), (418, "15", 0));
        let reply = client.get("a", "/empty").await;
        assert_eq!((reply.status.as_u16(), reply.body.len()), (200, 0));
    }
    assert_eq!(stat(&bed.proxy, "http.front.rq_direct_response").await, 6);
}

#[tokio::test]
async fn what_no_route_takes_is_404() {
    let hosts = "{ name: only, domains: [known.test], routes: [{ match: { prefix: /here }, direct_response: { status: 200 } }] }";
    let bed = Bed::start(Front { hosts, ..Front::default() }, "").await;
    for way in WAYS {
        let mut client = bed.client(way).await;
        for (authority, path) in [("unknown.test", "/here"), ("known.test", "/elsewhere")] {
            let reply = client.get(authority, path).await;
            assert_eq!((reply.status.as_u16(), reply.body.len()), (404, 0), "{way:?}");
        }
        assert_eq!(client.get("known.test", "/here").await.status, 200);
    }
    assert_eq!(stat(&bed.proxy, "http.front.no_route").await, 4);
    assert_eq!(stat(&bed.proxy, "http.front-mtls.downstream_rq_4xx").await, 4);
}
