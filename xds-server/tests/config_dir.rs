//! `config_dir::load`: what a directory gives, and that equal directories give equal bytes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use isthmus_proto::descriptor_pool;
use isthmus_xds::config_dir::{self, LoadedConfig, LoadedDocument, limits, read_text};
use proptest::prelude::*;
use prost_reflect::{DynamicMessage, SerializeOptions};

const FRAME: &str = "apiVersion: isthmus.io/v1alpha1\nkind: EnvoyResources\n";

/// Every kind of field that Envoy's configuration has, with the well-known types and nested `Any`s.
const RICH: &str = r#"
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: backend
connect_timeout: 0.25s
perConnectionBufferLimitBytes: 32768
lbPolicy: RING_HASH
ring_hash_lb_config: {minimum_ring_size: "1024", hash_function: 1, maximumRingSize: 8e3}
dns_lookup_family: V4_ONLY
ignore_health_on_host_removal: true
close_connections_on_host_health_failure: false
transport_socket_matches: []
outlier_detection: {consecutive_5xx: 0, max_ejection_time_jitter: -0s}
load_assignment:
  clusterName: backend
  policy: {overprovisioning_factor: 140}
  endpoints:
    - load_balancing_weight: 1
      lb_endpoints:
        - endpoint: {address: {socket_address: {address: 198.18.0.1, port_value: 0x1F90}}}
          health_status: HEALTHY
    - {}
metadata:
  filterMetadata:
    envoy.lb: {canary: true, weight: 1.5, name: "é", none: null, list: [1, [], {}, "two", false], empty: {}}
    another: {}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {max_concurrent_streams: 100}}
transport_socket:
  name: custom
  typed_config:
    "@type": type.googleapis.com/xds.type.v3.TypedStruct
    type_url: type.googleapis.com/some.Type
    value: {a: [b, {c: d}]}
filters:
  - name: any-in-any
    typed_config:
      "@type": type.googleapis.com/google.protobuf.Any
      value: {"@type": type.googleapis.com/google.protobuf.Duration, value: 1.000000001s}
  - name: struct
    typed_config: {"@type": type.googleapis.com/google.protobuf.Struct, value: {x: 1}}
  - name: empty
    typed_config: {"@type": type.googleapis.com/google.protobuf.Empty, value: {}}
  - name: bytes
    typed_config: {"@type": type.googleapis.com/google.protobuf.BytesValue, value: aGk_aGk-}
  - name: time
    typed_config: {"@type": type.googleapis.com/google.protobuf.Timestamp, value: "2030-01-02T03:04:05.25Z"}
"#;

#[test]
fn a_document_is_loaded_as_it_is_written() {
    let text = format!(
        "{FRAME}metadata: {{name: edge}}\nspec:\n  selector: {{cluster: edge, locality: {{zone: a}}, \
         metadata: {{role: gateway}}}}\n  resources:\n{}",
        item(RICH)
    );
    let documents = read_text("edge.yaml", &text).expect("a good document");
    let [document] = &*documents else {
        panic!("one document")
    };
    assert_eq!(&*document.name, "edge");
    assert_eq!(document.origin.to_string(), "edge.yaml:1 (document 1)");
    assert_eq!(document.selector.cluster.as_deref(), Some("edge"));
    assert_eq!(document.selector.locality.zone.as_deref(), Some("a"));
    assert_eq!(document.selector.metadata["role"], "gateway");
    let [resource] = &*document.resources else {
        panic!("one resource")
    };
    assert_eq!(
        &*resource.type_url,
        "type.googleapis.com/envoy.config.cluster.v3.Cluster"
    );
    assert_eq!(&*resource.name, "backend");
    assert_eq!(
        resource.origin.to_string(),
        "edge.yaml:7 (document 1, spec.resources[0])"
    );
}

/// prost-reflect reads the same JSON through serde; both must come to the same message.
#[test]
fn the_bytes_mean_what_the_json_says() {
    let text = format!(
        "{FRAME}metadata: {{name: a}}\nspec:\n  resources:\n{}",
        item(RICH)
    );
    let documents = read_text("a.yaml", &text).expect("a good document");
    let value = &documents[0].resources[0].value;
    let desc = descriptor_pool()
        .get_message_by_name("envoy.config.cluster.v3.Cluster")
        .expect("in the pool");
    let message = DynamicMessage::decode(desc.clone(), value.clone()).expect("well-formed bytes");
    let mut json = Vec::new();
    let options = SerializeOptions::new().skip_default_fields(true);
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut json), &options)
        .expect("a message is JSON");
    let json = String::from_utf8(json).expect("JSON is UTF-8");
    let oracle = DynamicMessage::deserialize(desc, &mut serde_json::Deserializer::from_str(&json))
        .expect("prost-reflect reads its own JSON");
    assert_eq!(message, oracle);

    for (path, wanted) in [
        ("/connectTimeout", r#""0.250s""#),
        ("/perConnectionBufferLimitBytes", "32768"),
        ("/ringHashLbConfig/minimumRingSize", r#""1024""#),
        ("/ringHashLbConfig/maximumRingSize", r#""8000""#),
        ("/ringHashLbConfig/hashFunction", r#""MURMUR_HASH_2""#),
        ("/outlierDetection/consecutive5xx", "0"),
        (
            "/loadAssignment/endpoints/0/lbEndpoints/0/endpoint/address/socketAddress/portValue",
            "8080",
        ),
        ("/loadAssignment/endpoints/1", "{}"),
        ("/metadata/filterMetadata/envoy.lb/weight", "1.5"),
        ("/metadata/filterMetadata/envoy.lb/none", "null"),
        (
            "/metadata/filterMetadata/envoy.lb/list",
            r#"[1.0,[],{},"two",false]"#,
        ),
        ("/transportSocket/typedConfig/value/a/1/c", r#""d""#),
        ("/filters/0/typedConfig/value/value", r#""1.000000001s""#),
        ("/filters/3/typedConfig/value", r#""aGk/aGk+""#),
        (
            "/filters/4/typedConfig/value",
            r#""2030-01-02T03:04:05.250Z""#,
        ),
    ] {
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let found = json.pointer(path).map(ToString::to_string);
        assert_eq!(found.as_deref(), Some(wanted), "{path}");
    }
}

#[test]
fn every_configuration_file_counts_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let put = |name: &str, text: String| fs::write(dir.path().join(name), text).expect("a file");
    put(
        "b.yaml",
        format!(
            "---\n{}---\n---\n{}...\n",
            cluster("b1", "{}"),
            cluster("b2", "{}")
        ),
    );
    put("a.yml", cluster("a", "{}"));
    put(
        "c.json",
        r#"{"apiVersion": "isthmus.io/v1alpha1", "kind": "EnvoyResources",
        "metadata": {"name": "c"}, "spec": {"resources": []}}"#
            .to_owned(),
    );
    put("with-bom.yaml", format!("\u{feff}{}", cluster("bom", "{}")));
    put("crlf.yaml", cluster("crlf", "{}").replace('\n', "\r\n"));
    put("README.md", "not: [yaml".to_owned());
    put(".hidden.yaml", "not: [yaml".to_owned());
    put("backup.yaml~", "not: [yaml".to_owned());
    fs::create_dir(dir.path().join("below")).expect("a directory");
    put("below/d.yaml", "not: [yaml".to_owned());
    let config = config_dir::load(dir.path()).expect("a good directory");
    let names: Vec<&str> = config
        .documents
        .iter()
        .map(|document| &*document.name)
        .collect();
    assert_eq!(names, ["a", "b1", "b2", "c", "crlf", "bom"]);
    assert_eq!(
        config.documents[2].origin.document, 3,
        "empty documents are counted, as editors do"
    );
}

#[test]
fn reads_the_layout_of_a_config_map_volume() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let generation = dir.path().join("..2030_01_02");
    fs::create_dir(&generation).expect("a directory");
    fs::write(generation.join("a.yaml"), cluster("a", "{}")).expect("a file");
    symlink("..2030_01_02", dir.path().join("..data")).expect("a link");
    symlink("..data/a.yaml", dir.path().join("a.yaml")).expect("a link");
    let config = config_dir::load(dir.path()).expect("a good directory");
    assert_eq!(names(&config), ["a"]);
}

#[test]
fn a_resource_is_unique_among_the_clients_that_get_it() {
    struct Case {
        name: &'static str,
        selectors: [&'static str; 2],
        is_fine: bool,
    }
    let cases = [
        Case {
            name: "everybody twice",
            selectors: ["{}", "{}"],
            is_fine: false,
        },
        Case {
            name: "everybody and one",
            selectors: ["{}", "{id: a}"],
            is_fine: false,
        },
        Case {
            name: "one and everybody",
            selectors: ["{id: a}", "{}"],
            is_fine: false,
        },
        Case {
            name: "two clients",
            selectors: ["{id: a}", "{id: b}"],
            is_fine: true,
        },
        Case {
            name: "the same client",
            selectors: ["{id: a}", "{id: a}"],
            is_fine: false,
        },
        Case {
            name: "unrelated fields",
            selectors: ["{id: a}", "{cluster: b}"],
            is_fine: false,
        },
        Case {
            name: "two zones",
            selectors: ["{locality: {region: r, zone: a}}", "{locality: {zone: b}}"],
            is_fine: true,
        },
        Case {
            name: "two values of one key",
            selectors: ["{metadata: {role: a, x: y}}", "{metadata: {role: b}}"],
            is_fine: true,
        },
        Case {
            name: "two keys",
            selectors: ["{metadata: {role: a}}", "{metadata: {tier: b}}"],
            is_fine: false,
        },
    ];
    for Case {
        name,
        selectors: [first, second],
        is_fine,
    } in cases
    {
        let text = format!(
            "{}---\n{}",
            document("a", "same", first),
            document("b", "same", second)
        );
        assert_eq!(read_text("a.yaml", &text).is_ok(), is_fine, "{name}");
    }
}

/// 10 MB in one file: the size that 5,000 clusters with their endpoints come to.
#[test]
fn a_file_of_ten_megabytes_is_read() {
    let mut text = format!("{FRAME}metadata: {{name: large}}\nspec:\n  resources:\n");
    let mut count = 0;
    while text.len() < 10 << 20 {
        let mut cluster = format!(
            "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: cluster-{count}\n\
             load_assignment:\n  cluster_name: cluster-{count}\n  endpoints:\n    - lb_endpoints:\n"
        );
        for host in 1..=16 {
            let address = format!("{{address: 198.18.0.{host}, port_value: 80}}");
            writeln!(
                cluster,
                "        - endpoint: {{address: {{socket_address: {address}}}}}"
            )
            .expect("a string takes text");
        }
        text.push_str(&item(&cluster));
        count += 1;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("large.yaml"), &text).expect("a file");
    let started = Instant::now();
    let config = config_dir::load(dir.path()).unwrap_or_else(|errors| panic!("{}", errors[0]));
    println!(
        "{count} clusters, {} bytes: {:?}",
        text.len(),
        started.elapsed()
    );
    assert_eq!(config.documents[0].resources.len(), count);
}

#[test]
fn errors_are_bounded() {
    let resources = "    - {name: no-type}\n".repeat(limits::MAX_ERRORS * 3);
    let text = format!("{FRAME}metadata: {{name: a}}\nspec:\n  resources:\n{resources}");
    let errors = read_text("a.yaml", &text).expect_err("bad resources");
    assert_eq!(errors.len(), limits::MAX_ERRORS);

    let fields = (0..limits::MAX_ERRORS * 3).map(|field| format!("      f{field}: 1\n"));
    let text = document("a", "x", "{}") + &fields.collect::<String>();
    let errors = read_text("a.yaml", &text).expect_err("bad fields");
    assert_eq!(errors.len(), limits::MAX_ERRORS);
}

#[test]
fn files_are_bounded() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for file in 0..=limits::MAX_FILES {
        File::create(dir.path().join(format!("{file}.yaml"))).expect("a file");
    }
    let errors = config_dir::load(dir.path()).expect_err("too many files");
    let wanted = format!(
        "{}: the directory holds 10001 configuration files, over the limit of 10000",
        dir.path().display()
    );
    assert_eq!(errors[0].to_string(), wanted);
}

/// Five files under the limit of one file, together over the limit of all.
#[test]
fn bytes_of_all_files_are_bounded() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for file in 0..5 {
        let file = File::create(dir.path().join(format!("{file}.yaml"))).expect("a file");
        file.set_len(limits::MAX_FILE_BYTES).expect("a sparse file");
    }
    let errors = config_dir::load(dir.path()).expect_err("too much text");
    let wanted = format!(
        "{}: the directory holds 335544320 bytes of configuration, over the limit of 268435456",
        dir.path().display()
    );
    assert_eq!(errors[0].to_string(), wanted);
}

proptest! {
    /// However a mapping is ordered and spelled, in YAML or JSON, the bytes are the same.
    #[test]
    fn equal_documents_give_equal_bytes(
        tags in prop::collection::btree_map("[a-z.]{1,12}", any::<u32>(), 0..20),
        seed in any::<u64>(),
    ) {
        let plain = render(&tags, 0);
        let shuffled = render(&tags, seed);
        let json = format!("{}\n", render_json(&tags));
        let bytes = |text: &str| read_text("a.yaml", text).expect("a good document")[0].resources[0].value.clone();
        prop_assert_eq!(bytes(&plain), bytes(&shuffled));
        prop_assert_eq!(bytes(&plain), bytes(&json));
        prop_assert_eq!(bytes(&plain), bytes(&plain));
    }

    /// Whatever the text is, there is an answer, and each error is one line.
    #[test]
    fn no_text_panics(text in "[-:{}\\[\\]&*!|>'\"%@`#?,a-c0-9 \n\t.~]{0,200}") {
        for error in read_text("a.yaml", &text).err().into_iter().flatten() {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}

/// The bytes of one message, so that a change of the encoding, which changes every version, is noticed.
#[test]
fn the_encoding_is_pinned() {
    let documents = read_text("a.yaml", &cluster("a", "{}")).expect("a good document");
    assert_eq!(&documents[0].resources[0].value[..], b"\x0a\x01a");
    let map = r#"
"@type": type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig
typed_config: {"@type": type.googleapis.com/google.protobuf.Struct, value: {b: true, a: null}}
name: x
"#;
    let text = format!(
        "{FRAME}metadata: {{name: a}}\nspec:\n  resources:\n{}",
        item(map)
    );
    let value = read_text("a.yaml", &text).expect("a good document")[0].resources[0]
        .value
        .clone();
    let url = b"type.googleapis.com/google.protobuf.Struct";
    let fields = b"\x0a\x07\x0a\x01a\x12\x02\x08\x00\x0a\x07\x0a\x01b\x12\x02\x20\x01";
    let mut wanted = b"\x0a\x01x\x12\x40\x0a\x2a".to_vec();
    wanted.extend(url);
    wanted.extend(b"\x12\x12");
    wanted.extend(fields);
    assert_eq!(value, wanted);
}

fn names(config: &LoadedConfig) -> Vec<&str> {
    config
        .documents
        .iter()
        .map(|document: &LoadedDocument| &*document.name)
        .collect()
}

fn cluster(name: &str, selector: &str) -> String {
    document(name, name, selector)
}

fn document(name: &str, cluster: &str, selector: &str) -> String {
    format!(
        "{FRAME}metadata: {{name: {name}}}\nspec:\n  selector: {selector}\n  resources:\n    - \"@type\": \
         type.googleapis.com/envoy.config.cluster.v3.Cluster\n      name: {cluster}\n"
    )
}

/// A list item of `spec.resources`.
fn item(yaml: &str) -> String {
    let mut text = String::new();
    for (index, line) in yaml.trim_matches('\n').lines().enumerate() {
        let indentation = if index == 0 { "    - " } else { "      " };
        writeln!(text, "{indentation}{line}").expect("a string takes text");
    }
    text
}

/// A cluster with two maps of `tags`, in an order that depends on `seed`.
fn render(tags: &BTreeMap<String, u32>, seed: u64) -> String {
    let mut tags: Vec<_> = tags.iter().collect();
    tags.sort_by_key(|(key, _)| if seed == 0 { 0 } else { mix(key, seed) });
    let flow: Vec<String> = tags
        .iter()
        .map(|(key, value)| format!("\"{key}\": {value}"))
        .collect();
    let flow = flow.join(", ");
    let metadata = format!("metadata: {{filter_metadata: {{one: {{{flow}}}, two: {{{flow}}}}}}}");
    let (first, last) = if seed.is_multiple_of(2) {
        ("name: a", &*metadata)
    } else {
        (&*metadata, "name: a")
    };
    let yaml =
        format!("{first}\n\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n{last}");
    format!(
        "{FRAME}metadata: {{name: a}}\nspec:\n  resources:\n{}",
        item(&yaml)
    )
}

fn render_json(tags: &BTreeMap<String, u32>) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "isthmus.io/v1alpha1",
        "kind": "EnvoyResources",
        "metadata": {"name": "a"},
        "spec": {"resources": [{
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": "a",
            "metadata": {"filterMetadata": {"two": tags, "one": tags}},
        }]},
    })
}

fn mix(key: &str, seed: u64) -> u64 {
    key.bytes().fold(seed, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Nothing may be left to the reader's imagination about where a directory is.
#[test]
fn a_directory_that_is_not_there_is_named() {
    let errors = config_dir::load(Path::new("/nonexistent/conf")).expect_err("no directory");
    assert_eq!(
        errors[0].to_string(),
        "/nonexistent/conf: the directory cannot be read: entity not found"
    );
}

#[test]
fn a_wrapper_says_what_a_message_cannot() {
    let config = read_text(
        "a.yaml",
        r#"
apiVersion: isthmus.io/v1alpha1
kind: EnvoyResources
metadata: {name: a}
spec:
  resources:
    - "@type": type.googleapis.com/envoy.service.discovery.v3.Resource
      name: main/shop
      aliases: [main/shop.example.org]
      ttl: 2.5s
      resource:
        "@type": type.googleapis.com/envoy.config.route.v3.VirtualHost
        name: shop
        domains: ["shop.example.org"]
    - "@type": type.googleapis.com/envoy.service.discovery.v3.Resource
      name: xdstp://example.org/envoy.config.cluster.v3.Cluster/shop?b=2&a=1
      resource: {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: shop}
    - "@type": type.googleapis.com/envoy.service.discovery.v3.Resource
      resource: {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: same}
    - "@type": type.googleapis.com/envoy.service.discovery.v3.Resource
      name: backend-1
      resource:
        "@type": type.googleapis.com/envoy.config.endpoint.v3.LbEndpoint
        endpointName: backend-1
    - {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: same-as-bare}
    - "@type": type.googleapis.com/envoy.service.discovery.v3.Resource
      name: same-as-wrapped
      resource: {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: same-as-wrapped}
"#,
    )
    .expect("it is right");
    let resources = &config[0].resources;
    let names: Vec<&str> = resources.iter().map(|it| &*it.name).collect();
    let canonical = "xdstp://example.org/envoy.config.cluster.v3.Cluster/shop?a=1&b=2";
    let others = ["same", "backend-1", "same-as-bare", "same-as-wrapped"];
    assert_eq!(names, [&["main/shop", canonical][..], &others].concat());
    let host = &resources[0];
    assert_eq!(
        &*host.type_url,
        "type.googleapis.com/envoy.config.route.v3.VirtualHost"
    );
    assert_eq!(host.aliases, ["main/shop.example.org".into()]);
    assert_eq!(host.ttl, Some(Duration::from_millis(2500)));
    assert_eq!(
        (&resources[4].aliases, resources[4].ttl),
        (&Vec::new(), None)
    );
    assert_eq!(
        &resources[5].value[..],
        b"\x0a\x0fsame-as-wrapped",
        "nothing of the wrapper"
    );
}

#[test]
fn a_type_without_descriptors_is_its_bytes() {
    let config = read_text(
        "a.yaml",
        r#"
apiVersion: isthmus.io/v1alpha1
kind: EnvoyResources
metadata: {name: a}
spec:
  resources:
    - "@type": type.googleapis.com/envoy.service.discovery.v3.Resource
      name: policy
      resource: {"@type": type.googleapis.com/acme.v1.Policy, value: AAEC}
    - "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
      name: extended
      typedExtensionProtocolOptions:
        acme.options: {"@type": type.googleapis.com/acme.v1.Options, value: CAE=}
"#,
    )
    .expect("it is right");
    let [policy, extended] = &*config[0].resources else {
        panic!("two resources: {config:?}");
    };
    assert_eq!(&*policy.type_url, "type.googleapis.com/acme.v1.Policy");
    assert_eq!(
        (&*policy.name, &policy.value[..]),
        ("policy", &[0, 1, 2][..])
    );
    let any = b"type.googleapis.com/acme.v1.Options\x12\x02\x08\x01";
    let has_any = extended.value.windows(any.len()).any(|it| it == any);
    assert!(has_any, "{:?}", extended.value);
}
