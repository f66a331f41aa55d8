//! Envoy's rules and what resources refer to, from the text of a document to the line of an error.

use std::fmt::Write;

use isthmus_proto::descriptor_pool;
use isthmus_xds::config_dir::{self, LoadedConfig, read_text};
use isthmus_xds::validate::references::{bindings, references};
use isthmus_xds::validate::rules;
use proptest::prelude::*;

const FRAME: &str = "apiVersion: isthmus.io/v1alpha1\nkind: EnvoyResources\n";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

/// Type, fields beside the name, and the paths and requirements that are not met.
type Case = (&'static str, &'static str, &'static [&'static str]);

const CASES: [Case; 24] = [
    (CLUSTER, "connect_timeout: 1s", &[]),
    (
        CLUSTER,
        "connect_timeout: -1s",
        &["connect_timeout: must be greater than 0s"],
    ),
    (
        CLUSTER,
        "connectTimeout: 0.0s",
        &["connectTimeout: must be greater than 0s"],
    ),
    (
        CLUSTER,
        "lb_policy: 77",
        &[
            "lb_policy: must be one of the values that envoy.config.cluster.v3.Cluster.LbPolicy defines",
        ],
    ),
    (
        CLUSTER,
        "lb_subset_config: {fallback_policy: NO_FALLBACK}",
        &[],
    ),
    (
        CLUSTER,
        "dns_refresh_rate: 0.001s",
        &["dns_refresh_rate: must be greater than 0.001s"],
    ),
    (
        CLUSTER,
        "ring_hash_lb_config: {minimum_ring_size: 8388609}",
        &["ring_hash_lb_config.minimum_ring_size: must be at most 8388608"],
    ),
    (
        CLUSTER,
        "ring_hash_lb_config: {minimum_ring_size: 8388608}",
        &[],
    ),
    (
        CLUSTER,
        "transport_socket: {}",
        &["transport_socket.name: must not be empty"],
    ),
    (
        CLUSTER,
        "metadata: {filter_metadata: {\"\": {}}}",
        &["metadata.filter_metadata[\"\"]: the key must not be empty"],
    ),
    (
        CLUSTER,
        "load_assignment: {endpoints: []}",
        &["load_assignment.cluster_name: must not be empty"],
    ),
    (
        CLUSTER,
        "load_assignment: {cluster_name: a, endpoints: [{priority: 128}]}",
        &[],
    ),
    (
        CLUSTER,
        "load_assignment: {cluster_name: a, endpoints: [{}, {priority: 129}]}",
        &["load_assignment.endpoints[1].priority: must be at most 128"],
    ),
    (
        CLUSTER,
        "outlier_detection: {enforcing_success_rate: 101}",
        &["outlier_detection.enforcing_success_rate: must be at most 100"],
    ),
    (
        CLUSTER,
        "typed_extension_protocol_options: {a: {\"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions}}",
        &[
            "typed_extension_protocol_options.a: must have one of explicit_http_config, use_downstream_protocol_config or auto_config",
        ],
    ),
    (
        CLUSTER,
        "metadata: {typed_filter_metadata: {a: {\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster}}}",
        &[],
    ),
    (
        "envoy.config.route.v3.RouteConfiguration",
        "response_headers_to_remove: [a, \"\\n\"]",
        &["response_headers_to_remove[1]: must not contain line breaks or characters of value 0"],
    ),
    (
        "envoy.config.route.v3.RouteConfiguration",
        "request_headers_to_add: [{}]",
        &["request_headers_to_add[0].header: is required"],
    ),
    (
        "envoy.config.route.v3.RouteConfiguration",
        "virtual_hosts: [{name: a, domains: [a], routes: [{match: {}, redirect: {}}]}]",
        &[
            "virtual_hosts[0].routes[0].match: must have one of prefix, path, safe_regex, connect_matcher, path_separated_prefix or path_match_policy",
        ],
    ),
    (
        "envoy.config.route.v3.RouteConfiguration",
        "virtual_hosts: [{name: a, domains: [a], routes: [{match: {path_separated_prefix: /a/}, redirect: {}}]}]",
        &[
            "virtual_hosts[0].routes[0].match.path_separated_prefix: must as a whole match the regular expression ^[^?#]+[^?#/]$",
        ],
    ),
    (
        "envoy.config.core.v3.TypedExtensionConfig",
        "{}",
        &["typed_config: is required"],
    ),
    (
        "envoy.config.core.v3.TypedExtensionConfig",
        "typed_config: {\"@type\": type.googleapis.com/google.protobuf.Any, value: {\"@type\": type.googleapis.com/envoy.config.core.v3.Pipe}}",
        &["typed_config.value.path: must not be empty"],
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        "validation_context: {verify_certificate_hash: [\"\"]}",
        &["validation_context.verify_certificate_hash[0]: must have at least 64 characters"],
    ),
    (
        "envoy.config.listener.v3.Listener",
        "address: {}",
        &["address: must have one of socket_address, pipe or envoy_internal_address"],
    ),
];

#[test]
fn each_kind_of_rule_is_asked_where_it_stands() {
    for (message, fields, wanted) in CASES {
        let fields = fields.trim_start_matches("{}");
        let comma = if fields.is_empty() { "" } else { ", " };
        let resource =
            format!("{{\"@type\": type.googleapis.com/{message}, name: a{comma}{fields}}}");
        let text = format!("{FRAME}metadata: {{name: a}}\nspec:\n  resources:\n    - {resource}\n");
        let errors = read_text("a.yaml", &text).map_or_else(|errors| errors, |_| Vec::new());
        let found = errors.iter().map(|error| {
            let path = error.place.path.as_deref().unwrap_or_default();
            assert_eq!(error.place.line, Some(6), "{fields}");
            format!(
                "{}: {}",
                path.trim_start_matches("spec.resources[0]."),
                error.problem
            )
        });
        assert_eq!(found.collect::<Vec<_>>(), wanted, "{message} {fields}");
    }
}

#[test]
fn no_rule_of_envoys_protos_is_left_unasked() {
    assert!(
        rules::unsupported().is_empty(),
        "{:#?}",
        rules::unsupported()
    );
}

#[test]
fn a_name_is_missing_if_no_client_can_get_it_with_the_document() {
    let route = |cluster: &str| {
        format!(
            "{{\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: r, virtual_hosts: \
             [{{name: a, domains: [a], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}]}}"
        )
    };
    let cluster =
        |name: &str| format!("{{\"@type\": type.googleapis.com/{CLUSTER}, name: {name}}}");
    let cases = [
        (
            "in one document",
            "{}",
            vec![route("b"), cluster("b")],
            "{}",
            vec![],
            0,
        ),
        (
            "in a document for everybody",
            "{id: x}",
            vec![route("b")],
            "{}",
            vec![cluster("b")],
            0,
        ),
        (
            "in a document for some of the clients",
            "{}",
            vec![route("b")],
            "{cluster: edge}",
            vec![cluster("b")],
            0,
        ),
        (
            "in a document that the same clients may get",
            "{cluster: edge}",
            vec![route("b")],
            "{id: x}",
            vec![cluster("b")],
            0,
        ),
        (
            "in a document for others",
            "{id: x}",
            vec![route("b")],
            "{id: y}",
            vec![cluster("b")],
            1,
        ),
        (
            "nowhere",
            "{}",
            vec![route("b")],
            "{}",
            vec![cluster("c")],
            1,
        ),
    ];
    for (name, first_selector, first, second_selector, second, wanted) in cases {
        let config = load(&[(first_selector, first), (second_selector, second)]);
        let config = config.unwrap_or_else(|errors| panic!("{name}: {errors:?}"));
        assert_eq!(
            config.warnings.len(),
            wanted,
            "{name}: {:?}",
            config.warnings
        );
    }
}

#[test]
fn two_listeners_of_one_client_cannot_have_one_address() {
    let listener = |name: &str, address: &str| {
        format!(
            "{{\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener, name: {name}, address: {address}}}"
        )
    };
    let socket = |rest: &str| format!("{{socket_address: {{address: {rest}}}}}");
    let cases = [
        (
            "the same",
            "{}",
            "{}",
            socket("0.0.0.0, port_value: 80"),
            (1, 0),
        ),
        (
            "one is for everybody",
            "{id: x}",
            "{}",
            socket("0.0.0.0, port_value: 80"),
            (1, 0),
        ),
        (
            "a client may match both",
            "{id: x}",
            "{cluster: c}",
            socket("0.0.0.0, port_value: 80"),
            (0, 1),
        ),
        (
            "for different clients",
            "{id: x}",
            "{id: y}",
            socket("0.0.0.0, port_value: 80"),
            (0, 0),
        ),
        (
            "another port",
            "{}",
            "{}",
            socket("0.0.0.0, port_value: 81"),
            (0, 0),
        ),
        (
            "another protocol",
            "{}",
            "{}",
            socket("0.0.0.0, port_value: 80, protocol: UDP"),
            (0, 0),
        ),
        (
            "another address",
            "{}",
            "{}",
            socket("\"::\", port_value: 80"),
            (0, 0),
        ),
    ];
    for (name, first, second, address, (errors, warnings)) in cases {
        let taken = listener("a", &socket("0.0.0.0, port_value: 80"));
        let found = match load(&[
            (first, vec![taken]),
            (second, vec![listener("b", &address)]),
        ]) {
            Ok(config) => (0, config.warnings.len()),
            Err(errors) => (errors.len(), 0),
        };
        assert_eq!(found, (errors, warnings), "{name}");
    }
}

#[test]
fn thousands_of_clusters_are_read_and_checked() {
    const CLUSTERS: usize = 6_000;
    let mut text = format!("{FRAME}metadata: {{name: a}}\nspec:\n  resources:\n");
    for index in 0..CLUSTERS {
        writeln!(
            text,
            "    - {{\"@type\": type.googleapis.com/{CLUSTER}, name: c{index}, connect_timeout: 1s, type: STATIC, \
             load_assignment: {{cluster_name: c{index}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
             {{socket_address: {{address: 198.18.0.1, port_value: 80}}}}}}}}]}}]}}}}"
        )
        .expect("a string");
    }
    let documents = read_text("a.yaml", &text).expect("a good document");
    assert_eq!(documents[0].resources.len(), CLUSTERS);
    for resource in &documents[0].resources {
        assert_eq!(rules::check(CLUSTER, &resource.value), []);
        assert_eq!(references(CLUSTER, &resource.value), []);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_checked_without_panic(index in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let messages: Vec<_> = descriptor_pool().all_messages().collect();
        let name = index.get(&messages).full_name();
        let _ = (rules::check(name, &bytes), references(name, &bytes), bindings(&bytes));
    }

    #[test]
    fn deep_messages_are_cut_off(depth in 0_usize..3_000) {
        // An Any in an Any in an Any ...
        let mut bytes = Vec::new();
        for _ in 0..depth {
            let mut outer = Vec::new();
            prost::encoding::string::encode(1, &"type.googleapis.com/google.protobuf.Any".to_owned(), &mut outer);
            prost::encoding::bytes::encode(2, &bytes, &mut outer);
            bytes = outer;
        }
        let mut message = Vec::new();
        prost::encoding::string::encode(1, &"a".to_owned(), &mut message);
        prost::encoding::bytes::encode(2, &bytes, &mut message);
        let violations = rules::check("envoy.config.core.v3.TypedExtensionConfig", &message);
        assert_eq!(violations.is_empty(), depth < isthmus_xds::validate::MAX_DEPTH);
    }
}

fn load(documents: &[(&str, Vec<String>)]) -> Result<LoadedConfig, Vec<config_dir::ConfigError>> {
    let dir = tempfile::tempdir().expect("a directory");
    for (index, (selector, resources)) in documents.iter().enumerate() {
        let mut text =
            format!("{FRAME}metadata: {{name: d{index}}}\nspec:\n  selector: {selector}\n");
        if resources.is_empty() {
            text.push_str("  resources: []\n");
        } else {
            text.push_str("  resources:\n");
        }
        for resource in resources {
            writeln!(text, "    - {resource}").expect("a string");
        }
        std::fs::write(dir.path().join(format!("{index}.yaml")), text).expect("a file");
    }
    config_dir::load(dir.path())
}
