use super::*;
use crate::discovery::ledger::Standing;
use serde_json::json;
use std::cell::Cell;
use std::rc::Rc;
use xds_client::TypeUrl;
use xds_protos::{Format, ParseOptions};

#[derive(Default)]
struct Says {
    warming: Cell<bool>,
    draining: Cell<bool>,
}

impl Standing for Says {
    fn is_warming(&self, _: Api, _: &str) -> bool {
        self.warming.get()
    }

    fn is_draining(&self, _: Api, _: &str) -> bool {
        self.draining.get()
    }
}

fn wire(type_url: &TypeUrl, json: &Value) -> Vec<u8> {
    let text = json.to_string();
    Descriptors.parse(type_url.message_name(), &text, Format::Json, ParseOptions::default()).unwrap().bytes
}

fn listener(name: &str, route: &str) -> Vec<u8> {
    let hcm = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let filter =
        json!({"name": "h", "typed_config": {"@type": hcm, "stat_prefix": "x", "route_config": {"name": route}}});
    wire(&TypeUrl::LISTENER, &json!({"name": name, "filter_chains": [{"filters": [filter]}]}))
}

/// A ledger with something in every list that does not need live clusters.
fn ledger() -> Ledger {
    let says = Rc::new(Says::default());
    let mut ledger = Ledger::new(says.clone());
    let name = |name: &str| json!({ "name": name });
    let cluster = TypeUrl::CLUSTER;
    ledger.record_static(&cluster, "fixed", wire(&cluster, &name("fixed")).into(), &[]);
    ledger.record_static(&TypeUrl::LISTENER, "front", listener("front", "inline").into(), &[]);
    let key = json!({"name": "key", "tls_certificate": {"private_key": {"inline_string": "very secret"}}});
    ledger.record_static(&TypeUrl::SECRET, "key", wire(&TypeUrl::SECRET, &key).into(), &[]);
    ledger.accepted(&cluster, &"ads".into(), "good", "1", wire(&cluster, &name("good")));
    ledger.accepted(&cluster, &"ads".into(), "bad", "1", wire(&cluster, &name("bad")));
    ledger.rejected(
        &cluster,
        &"ads".into(),
        "bad",
        "2",
        wire(&cluster, &json!({"name": "bad", "alt_stat_name": "x"})),
        "no good",
    );
    ledger.rejected(&cluster, &"ads".into(), "never", "2", wire(&cluster, &name("never")), "not at all");
    ledger.set_version(&cluster, "1");
    says.warming.set(true);
    ledger.accepted(&cluster, &"ads".into(), "cold", "1", wire(&cluster, &name("cold")));
    ledger.accepted(&TypeUrl::LISTENER, &"ads".into(), "cold", "1", listener("cold", "later"));
    says.warming.set(false);
    ledger.accepted(&TypeUrl::LISTENER, &"ads".into(), "old", "1", listener("old", "first"));
    says.draining.set(true);
    ledger.accepted(&TypeUrl::LISTENER, &"ads".into(), "old", "2", listener("old", "second"));
    ledger.rejected(&TypeUrl::LISTENER, &"ads".into(), "wrong", "2", listener("wrong", "r"), "not so");
    ledger.requested(&TypeUrl::ROUTE, &"ads".into(), "missing");
    ledger.accepted(&TypeUrl::ROUTE, &"ads".into(), "routes", "5", wire(&TypeUrl::ROUTE, &name("routes")));
    ledger.requested(&TypeUrl::SECRET, &"ads".into(), "wanted");
    ledger.accepted(&TypeUrl::SECRET, &"ads".into(), "key2", "1", wire(&TypeUrl::SECRET, &key));
    let odd = json!({"name": "filter", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}});
    let mut odd = wire(&TypeUrl::EXTENSION, &odd);
    ledger.accepted(&TypeUrl::EXTENSION, &"ads".into(), "known", "1", odd.clone());
    // a type that no descriptor has
    let at = odd.windows(9).position(|w| w == b"v3.Router").unwrap();
    odd[at..at + 9].copy_from_slice(b"v9.Unknwn");
    ledger.accepted(&TypeUrl::EXTENSION, &"ads".into(), "filter", "1", odd);
    ledger
}

fn asked(ledger: &Ledger, query: &ConfigDumpQuery) -> Result<String, DumpError> {
    let bootstrap = json!({"static_resources": {"secrets": [{"name": "s", "generic_secret": {"secret": {"inline_string": "hidden"}}}]}});
    let bytes = Descriptors.parse(
        "envoy.config.bootstrap.v3.Bootstrap",
        &bootstrap.to_string(),
        Format::Json,
        ParseOptions::default(),
    );
    let config = StaticConfig { bytes: bytes.unwrap().bytes.into(), loaded: SystemTime::UNIX_EPOCH };
    let node = Node { id: "n".into(), ..Node::default() };
    let dump = Parts::new(ledger, &config, &node, &[], query)?.dump(query)?;
    Ok(String::from_utf8(dump.flatten().collect()).unwrap())
}

fn page(query: &ConfigDumpQuery) -> Value {
    serde_json::from_str(&asked(&ledger(), query).unwrap()).unwrap()
}

fn section<'a>(page: &'a Value, name: &str) -> &'a Value {
    let type_url = format!("type.googleapis.com/envoy.admin.v3.{name}");
    page["configs"].as_array().unwrap().iter().find(|s| s["@type"] == *type_url).unwrap()
}

#[test]
fn it_is_envoys_message_and_says_no_secret() {
    let mut ledger = ledger();
    // what is not known cannot be parsed strictly
    ledger.forget(&TypeUrl::EXTENSION, &"ads".into(), "filter");
    let text = asked(&ledger, &ConfigDumpQuery::default()).unwrap();
    let parsed = Descriptors.parse("envoy.admin.v3.ConfigDump", &text, Format::Json, ParseOptions::default()).unwrap();
    assert!(parsed.unknown_fields.is_empty());
    assert!(!text.contains("very secret") && !text.contains("hidden"), "{text}");
    assert!(text.starts_with(
        "{\n \"configs\": [\n  {\n   \"@type\": \"type.googleapis.com/envoy.admin.v3.BootstrapConfigDump\",\n"
    ));
    assert!(text.ends_with("\n  }\n ]\n}\n"), "{text}");
    let again = serde_json::from_str::<Value>(&text).unwrap();
    let mut as_value = String::new();
    write_json(&mut as_value, &again, 0);
    assert_eq!(as_value + "\n", text, "written in pieces or as one, it looks the same");
    let sections: Vec<&str> = again["configs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["@type"].as_str().unwrap().rsplit('.').next().unwrap())
        .collect();
    let expected = [
        "BootstrapConfigDump",
        "ClustersConfigDump",
        "EcdsConfigDump",
        "ListenersConfigDump",
        "ScopedRoutesConfigDump",
        "RoutesConfigDump",
        "SecretsConfigDump",
    ];
    assert_eq!(sections, expected);
}

#[test]
fn every_state_has_its_list() {
    let page = page(&ConfigDumpQuery::default());
    let names = |section: &Value, list: &str, inner: &str| -> Vec<String> {
        let items = section[list].as_array().into_iter().flatten();
        items.map(|item| item[inner]["name"].as_str().or(item["name"].as_str()).unwrap_or("-").to_owned()).collect()
    };
    let clusters = section(&page, "ClustersConfigDump");
    assert_eq!(clusters["version_info"], "1");
    assert_eq!(names(clusters, "static_clusters", "cluster"), ["fixed"]);
    assert_eq!(names(clusters, "dynamic_active_clusters", "cluster"), ["bad", "good"]);
    assert_eq!(names(clusters, "dynamic_warming_clusters", "cluster"), ["cold", "-"]);
    let bad = &clusters["dynamic_active_clusters"][0];
    assert_eq!((&bad["version_info"], &bad["client_status"]), (&json!("1"), &json!("NACKED")));
    assert_eq!(bad["error_state"]["failed_configuration"]["alt_stat_name"], "x");
    assert_eq!((&bad["error_state"]["details"], &bad["error_state"]["version_info"]), (&json!("no good"), &json!("2")));
    assert_eq!(clusters["dynamic_active_clusters"][1]["client_status"], "ACKED");

    let listeners = section(&page, "ListenersConfigDump");
    assert_eq!(names(listeners, "dynamic_listeners", ""), ["cold", "old", "wrong"]);
    let dynamic = &listeners["dynamic_listeners"];
    assert!(dynamic[0]["active_state"].is_null() && dynamic[0]["warming_state"]["listener"]["name"] == "cold");
    assert_eq!(
        (&dynamic[1]["active_state"]["version_info"], &dynamic[1]["draining_state"]["version_info"]),
        (&json!("2"), &json!("1"))
    );
    assert_eq!((&dynamic[2]["error_state"]["details"], &dynamic[2]["active_state"]), (&json!("not so"), &Value::Null));

    let routes = section(&page, "RoutesConfigDump");
    assert_eq!(names(routes, "static_route_configs", "route_config"), ["inline", "second"]);
    assert_eq!(names(routes, "dynamic_route_configs", "route_config"), ["routes"]);

    let secrets = section(&page, "SecretsConfigDump");
    assert_eq!(names(secrets, "static_secrets", ""), ["key"]);
    assert_eq!(secrets["static_secrets"][0]["secret"]["tls_certificate"]["private_key"]["inline_string"], "[redacted]");
    assert_eq!(names(secrets, "dynamic_active_secrets", ""), ["key2"]);
    let waiting = &secrets["dynamic_warming_secrets"][0];
    assert_eq!(
        (&waiting["name"], &waiting["version_info"], &waiting["client_status"]),
        (&json!("wanted"), &json!("uninitialized"), &json!("REQUESTED"))
    );

    let unknown = &section(&page, "EcdsConfigDump")["ecds_filters"][0]["ecds_filter"]["typed_config"];
    assert!(unknown["@type"].as_str().unwrap().ends_with("v9.Unknwn"), "{unknown}");
}

#[test]
fn what_was_refused_stands_there_though_nothing_ever_ran() {
    let mut ledger = ledger();
    for (type_url, field) in [
        (TypeUrl::ROUTE, "name"),
        (TypeUrl::EXTENSION, "name"),
        (TypeUrl::SECRET, "name"),
        (TypeUrl::ENDPOINT, "cluster_name"),
    ] {
        let bytes = wire(&type_url, &json!({ field: "refused" }));
        ledger.rejected(&type_url, &"ads".into(), "refused", "9", bytes, "no good");
    }
    let query = ConfigDumpQuery { include_eds: true, ..ConfigDumpQuery::default() };
    let text = asked(&ledger, &query).unwrap();
    let page: Value = serde_json::from_str(&text).unwrap();
    for (section_name, list, inner, name) in [
        ("RoutesConfigDump", "dynamic_route_configs", "route_config", "name"),
        ("EcdsConfigDump", "ecds_filters", "ecds_filter", "name"),
        ("SecretsConfigDump", "dynamic_warming_secrets", "secret", "name"),
        ("EndpointsConfigDump", "dynamic_endpoint_configs", "endpoint_config", "cluster_name"),
    ] {
        let items = section(&page, section_name)[list].as_array().unwrap();
        let one = items.iter().find(|item| item[inner][name] == "refused").unwrap_or_else(|| panic!("{text}"));
        assert_eq!((&one["client_status"], &one["error_state"]["details"]), (&json!("NACKED"), &json!("no good")));
        assert_eq!(one["error_state"]["failed_configuration"][name], "refused");
    }
    let without = asked(&ledger, &ConfigDumpQuery::default()).unwrap();
    assert!(!without.contains("EndpointsConfigDump"));
}

#[test]
fn there_are_sections_of_routes_only_beside_http() {
    let mut ledger = Ledger::new(Rc::new(Says::default()));
    let tcp = wire(&TypeUrl::LISTENER, &json!({"name": "tcp"}));
    ledger.record_static(&TypeUrl::LISTENER, "tcp", tcp.into(), &[]);
    assert!(!asked(&ledger, &ConfigDumpQuery::default()).unwrap().contains("Routes"));
    let resource = Some("dynamic_route_configs".to_owned());
    assert_eq!(asked(&ledger, &ConfigDumpQuery { resource, ..Default::default() }).unwrap_err().status, 404);
    ledger.accepted(&TypeUrl::LISTENER, &"ads".into(), "http", "1", listener("http", "r"));
    let both = |ledger: &Ledger| {
        let text = asked(ledger, &ConfigDumpQuery::default()).unwrap();
        text.contains("v3.RoutesConfigDump") && text.contains("v3.ScopedRoutesConfigDump")
    };
    assert!(both(&ledger));
    // the listener may be waiting for them
    ledger.forget(&TypeUrl::LISTENER, &"ads".into(), "http");
    assert!(!both(&ledger));
    ledger.requested(&TypeUrl::ROUTE, &"ads".into(), "r");
    assert!(both(&ledger));
}

#[test]
fn a_query_narrows_it_as_envoys_does() {
    let query = |resource: &str, mask: &str, name: &str| {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        ConfigDumpQuery { resource: some(resource), mask: some(mask), name_regex: some(name), include_eds: false }
    };
    let only = page(&query("dynamic_active_clusters", "cluster.name,version_info", "go.d"));
    let element = "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.DynamicCluster";
    let cluster = json!({"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "good"});
    assert_eq!(only, json!({"configs": [{"@type": element, "version_info": "1", "cluster": cluster}]}));
    assert_eq!(page(&query("", "bootstrap.node.id", ""))["configs"].as_array().unwrap().len(), 1);
    let two = page(&query("", "version_info", ""));
    assert_eq!(two["configs"].as_array().unwrap().len(), 2, "{two}");
    let ledger = ledger();
    assert_eq!(asked(&ledger, &query("dynamic_route_configs", "", "nobody")).unwrap(), "{}\n");
    let refused = |resource: &str, mask: &str, name: &str| {
        let error = asked(&ledger, &query(resource, mask, name)).unwrap_err();
        (error.status, error.message)
    };
    assert_eq!(refused("nope", "", ""), (404, "nope not found in config dump".into()));
    assert_eq!(refused("static_endpoint_configs", "", "").0, 404);
    assert_eq!(
        refused("bootstrap", "", ""),
        (400, "bootstrap is not a repeated field. Use ?mask=bootstrap to get only this field".into())
    );
    let nowhere = "FieldMask static_clusters.cluster could not be successfully applied to any configs.";
    assert_eq!(refused("", "static_clusters.cluster", ""), (400, nowhere.into()));
    let bad = "FieldMask paths: \"cluster.nope\"\n could not be successfully used.";
    assert_eq!(refused("static_clusters", "cluster.nope", ""), (400, bad.into()));
    let (status, text) = refused("", "", "(");
    assert!(status == 400 && text.starts_with("INVALID_ARGUMENT: Error while parsing name_regex from (: "), "{text}");
}

#[test]
fn times_print_in_rfc_3339() {
    assert_eq!(timestamp(SystemTime::UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
}
