//! What a person gets wrong in a configuration directory: one clear line each, and the last good
//! configuration stays in force.

use std::fmt::Write;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isthmus_xds::config_dir::limits::MAX_FILE_BYTES;
use isthmus_xds::config_dir::watch::{DirectoryWatch, Reading, Timing, watch};

/// Long enough for a machine under load; a test that passes takes milliseconds.
const DEADLINE: Duration = Duration::from_mins(1);

const GOOD: &str = r#"
apiVersion: isthmus.io/v1alpha1
kind: EnvoyResources
metadata: {name: good}
spec:
  resources:
    - {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: good}
"#;

struct Case {
    name: &'static str,
    /// Makes the directory, which has `good.yaml`, bad.
    spoil: Box<dyn Fn(&Path)>,
    /// All errors. `DIR` stands for the directory.
    errors: &'static [&'static str],
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_has_one_clear_line_and_the_last_good_stays() {
    for case in files()
        .into_iter()
        .chain(frames())
        .chain(syntax())
        .chain(resources())
        .chain(wrappers())
    {
        check(case).await;
    }
}

async fn check(case: Case) {
    let Case {
        name,
        spoil,
        errors,
    } = case;
    let parent = tempfile::tempdir().expect("a temporary directory");
    let dir = parent.path().join("conf");
    fs::create_dir(&dir).expect("a directory");
    fs::write(dir.join("good.yaml"), GOOD).expect("a file");
    let timing = Timing {
        quiet: Duration::from_millis(10),
        ..Timing::default()
    };
    let watched = watch(&dir, timing).expect("a watch");
    let good = reading(&watched, name, |reading| reading.config.is_some()).await;
    let good = good.config.expect("a configuration");

    spoil(&dir);

    let wanted: Vec<String> = errors
        .iter()
        .map(|line| line.replace("DIR", &dir.to_string_lossy()))
        .collect();
    assert!(!errors.is_empty(), "{name}: a case says what it wants");
    let is_as_wanted = |reading: &Reading| lines(reading) == wanted;
    let last = reading(&watched, name, |reading| is_as_wanted(reading)).await;
    assert!(
        last.config
            .is_some_and(|config| Arc::ptr_eq(&config, &good)),
        "{name}: last good stays"
    );
    for line in lines(&Reading {
        errors: last.errors,
        ..Reading::default()
    }) {
        assert!(!line.contains('\n'), "{name}: one line: {line}");
    }
}

fn lines(reading: &Reading) -> Vec<String> {
    reading.errors.iter().map(ToString::to_string).collect()
}

async fn reading(
    watched: &DirectoryWatch,
    name: &str,
    is_it: impl Fn(&Reading) -> bool,
) -> Reading {
    let mut readings = watched.readings();
    let waited = tokio::time::timeout(DEADLINE, readings.wait_for(|reading| is_it(reading))).await;
    let Ok(ended) = waited else {
        let last = lines(&watched.readings().borrow());
        panic!("{name}: not within {DEADLINE:?}; last errors: {last:#?}");
    };
    ended.expect("the watch goes on").clone()
}

fn write(name: &'static str, content: impl Into<Vec<u8>>) -> Box<dyn Fn(&Path)> {
    let content = content.into();
    Box::new(move |dir| fs::write(dir.join(name), &content).expect("a file"))
}

/// A document named "bad" with one resource, whose YAML starts in the first column.
fn resource(yaml: &str) -> Box<dyn Fn(&Path)> {
    let mut text = String::from(
        "apiVersion: isthmus.io/v1alpha1\nkind: EnvoyResources\nmetadata: {name: bad}\nspec:\n  resources:\n",
    );
    for (index, line) in yaml.trim_matches('\n').lines().enumerate() {
        text.push_str(if index == 0 { "    - " } else { "      " });
        text.push_str(line);
        text.push('\n');
    }
    write("bad.yaml", text)
}

fn cluster(yaml: &str) -> Box<dyn Fn(&Path)> {
    resource(&format!(
        "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: bad\n{}",
        yaml.trim_matches('\n')
    ))
}

fn files() -> Vec<Case> {
    vec![
        Case {
            name: "an empty file",
            spoil: write("bad.yaml", ""),
            errors: &["bad.yaml: the file holds no document; write one, or delete the file"],
        },
        Case {
            name: "comments only",
            spoil: write("bad.yaml", "# soon\n---\n# very soon\n"),
            errors: &["bad.yaml: the file holds no document; write one, or delete the file"],
        },
        Case {
            name: "a binary file",
            spoil: write("bad.yaml", b"\x7fELF\x02\x01\x01\0\0\0".as_slice()),
            errors: &[r"bad.yaml:1:1: document 1: syntax error: unexpected character: `\u{7f}'"],
        },
        Case {
            name: "text that is not UTF-8",
            spoil: write("bad.yaml", b"metadata: {name: caf\xe9}\n".as_slice()),
            errors: &["bad.yaml: not UTF-8 text (byte 20); expected YAML or JSON"],
        },
        Case {
            name: "a directory with the name of a file",
            spoil: Box::new(|dir| fs::create_dir(dir.join("bad.yaml")).expect("a directory")),
            errors: &["bad.yaml: not a regular file; remove it or give it another extension"],
        },
        Case {
            name: "a link to nowhere",
            spoil: Box::new(|dir| symlink("nowhere", dir.join("bad.yaml")).expect("a link")),
            errors: &["bad.yaml: the file cannot be read: entity not found"],
        },
        Case {
            name: "a link to itself",
            spoil: Box::new(|dir| symlink("bad.yaml", dir.join("bad.yaml")).expect("a link")),
            errors: &[
                "bad.yaml: the file cannot be read: filesystem loop or indirection limit (e.g. symlink loop)",
            ],
        },
        Case {
            name: "a pipe, which must not be waited for",
            spoil: Box::new(|dir| {
                let made = std::process::Command::new("mkfifo")
                    .arg(dir.join("bad.yaml"))
                    .status();
                assert!(made.expect("mkfifo runs").success());
            }),
            errors: &["bad.yaml: not a regular file; remove it or give it another extension"],
        },
        Case {
            name: "a socket",
            spoil: Box::new(|dir| {
                drop(UnixListener::bind(dir.join("bad.yaml")).expect("a socket"));
            }),
            errors: &["bad.yaml: not a regular file; remove it or give it another extension"],
        },
        Case {
            name: "a file over the limit",
            spoil: Box::new(|dir| {
                let file = File::create(dir.join("bad.yaml")).expect("a file");
                file.set_len(MAX_FILE_BYTES + 1).expect("a sparse file");
            }),
            errors: &[
                "bad.yaml: the file has 67108865 bytes, over the limit of 67108864; split it",
            ],
        },
        Case {
            name: "the last file is removed",
            spoil: Box::new(|dir| {
                fs::remove_file(dir.join("good.yaml")).expect("a file to remove");
            }),
            errors: &[
                "DIR: the directory holds no .yaml, .yml or .json file; to serve nothing on purpose, \
                 write a document with `resources: []`",
            ],
        },
        Case {
            name: "the directory is removed",
            spoil: Box::new(|dir| fs::remove_dir_all(dir).expect("a directory to remove")),
            errors: &["DIR: the directory cannot be read: entity not found"],
        },
    ]
}

fn syntax() -> Vec<Case> {
    vec![
        Case {
            name: "YAML that ends in a string",
            spoil: write("bad.yaml", "metadata:\n  name: \"bad\n"),
            errors: &["bad.yaml:2:9: document 1: syntax error: unclosed quote"],
        },
        Case {
            name: "a tab as indentation",
            spoil: write("bad.yaml", "metadata:\n\tname: bad\n"),
            errors: &[
                "bad.yaml:2:2: document 1: syntax error: tabs disallowed within this context (block indentation)",
            ],
        },
        Case {
            name: "the second document is broken, and the first is still checked",
            spoil: write(
                "bad.yaml",
                "apiVersion: v2\nkind: EnvoyResources\n---\nkind: [\n",
            ),
            errors: &[
                r#"bad.yaml:1: document 1: apiVersion: unknown apiVersion "v2", expected "isthmus.io/v1alpha1""#,
                "bad.yaml:4:7: document 2: syntax error: unclosed bracket '['",
            ],
        },
        Case {
            name: "JSON that is cut short",
            spoil: write("bad.json", r#"{"apiVersion": "isth"#),
            errors: &["bad.json:1:16: document 1: syntax error: unclosed quote"],
        },
        Case {
            name: "an alias without an anchor",
            spoil: write("bad.yaml", "metadata: *shared\n"),
            errors: &[
                "bad.yaml:1:11: document 1: syntax error: while parsing node, found unknown anchor",
            ],
        },
        Case {
            name: "an alias inside what it names",
            spoil: write("bad.yaml", "metadata: &loop\n  name: *loop\n"),
            errors: &[
                "bad.yaml:2:9: document 1: the alias refers to the collection that contains it",
            ],
        },
        Case {
            name: "an alias bomb",
            spoil: write("bad.yaml", {
                let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
                for level in 1..10 {
                    let below = vec![format!("*a{}", level - 1); 10].join(", ");
                    writeln!(bomb, "a{level}: &a{level} [{below}]").expect("a string takes text");
                }
                bomb
            }),
            errors: &["bad.yaml:6:40: document 1: aliases expand to more than 1000000 values"],
        },
        Case {
            name: "deep nesting",
            spoil: write(
                "bad.yaml",
                format!("a: {}{}\n", "[".repeat(5000), "]".repeat(5000)),
            ),
            errors: &["bad.yaml:1:259: document 1: nested deeper than 100 levels"],
        },
        Case {
            name: "a mapping as a key",
            spoil: write("bad.yaml", "? {a: b}\n: c\n"),
            errors: &[
                "bad.yaml:1:8: document 1: null, lists and mappings as keys are not supported",
            ],
        },
        Case {
            name: "a custom tag",
            spoil: write("bad.yaml", "metadata: !vault secret\n"),
            errors: &["bad.yaml:1:18: document 1: custom tags are not supported"],
        },
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn frames() -> Vec<Case> {
    let frame = |rest: &str| {
        write(
            "bad.yaml",
            format!("apiVersion: isthmus.io/v1alpha1\nkind: EnvoyResources\n{rest}"),
        )
    };
    vec![
        Case {
            name: "not a mapping",
            spoil: write("bad.yaml", "hello\n"),
            errors: &[
                "bad.yaml:1: document 1: expected a mapping with apiVersion, kind, metadata and spec (EnvoyResources), found a string",
            ],
        },
        Case {
            name: "no apiVersion",
            spoil: write("bad.yaml", "kind: EnvoyResources\n"),
            errors: &[r#"bad.yaml:1: document 1: missing "apiVersion""#],
        },
        Case {
            name: "an unknown apiVersion",
            spoil: write(
                "bad.yaml",
                "apiVersion: isthmus.io/v2\nkind: EnvoyResources\n",
            ),
            errors: &[
                r#"bad.yaml:1: document 1: apiVersion: unknown apiVersion "isthmus.io/v2", expected "isthmus.io/v1alpha1""#,
            ],
        },
        Case {
            name: "an unknown kind",
            spoil: write(
                "bad.yaml",
                "apiVersion: isthmus.io/v1alpha1\nkind: EnvoyResource\n",
            ),
            errors: &[
                r#"bad.yaml:2: document 1: kind: unknown kind "EnvoyResource", expected "EnvoyResources""#,
            ],
        },
        Case {
            name: "no metadata",
            spoil: frame("spec: {}\n"),
            errors: &[r#"bad.yaml:1: document 1: missing "metadata""#],
        },
        Case {
            name: "no name",
            spoil: frame("metadata: {}\nspec: {}\n"),
            errors: &[r#"bad.yaml:3: document 1: metadata: missing "name""#],
        },
        Case {
            name: "an empty name",
            spoil: frame("metadata: {name: \"\"}\nspec: {}\n"),
            errors: &["bad.yaml:3: document 1: metadata.name: must not be empty"],
        },
        Case {
            name: "a number as the name",
            spoil: frame("metadata: {name: 7}\nspec: {}\n"),
            errors: &[
                "bad.yaml:3: document 1: metadata.name: expected a string, found a number: put it in quotes",
            ],
        },
        Case {
            name: "no spec",
            spoil: frame("metadata: {name: bad}\n"),
            errors: &[r#"bad.yaml:1: document 1 "bad": missing "spec""#],
        },
        Case {
            name: "an unknown key of spec",
            spoil: frame("metadata: {name: bad}\nspec:\n  resource: []\n"),
            errors: &[
                r#"bad.yaml:5: document 1 "bad": spec.resource: unknown key "resource", did you mean "resources"?"#,
            ],
        },
        Case {
            name: "an unknown key of the selector",
            spoil: frame("metadata: {name: bad}\nspec:\n  selector:\n    nodeId: a\n"),
            errors: &[
                r#"bad.yaml:6: document 1 "bad": spec.selector.nodeId: unknown key "nodeId", expected "cluster", "id", "identity", "locality" or "metadata""#,
            ],
        },
        Case {
            name: "an identity that is none",
            spoil: frame("metadata: {name: bad}\nspec:\n  selector:\n    identity: cart\n"),
            errors: &[
                r#"bad.yaml:6: document 1 "bad": spec.selector.identity: "cart" is no identity: give spiffe://TRUST-DOMAIN/PATH, or uid:NUMBER for a user of this machine"#,
            ],
        },
        Case {
            name: "an empty selector key, which would match everybody",
            spoil: frame("metadata: {name: bad}\nspec:\n  selector:\n  resources: []\n"),
            errors: &[
                r#"bad.yaml:5: document 1 "bad": spec.selector: expected a mapping, found null"#,
            ],
        },
        Case {
            name: "a selector by a number",
            spoil: frame("metadata: {name: bad}\nspec:\n  selector:\n    metadata: {shard: 3}\n"),
            errors: &[
                r#"bad.yaml:6: document 1 "bad": spec.selector.metadata.shard: expected a string, found a number: put it in quotes"#,
            ],
        },
        Case {
            name: "resources that are no list",
            spoil: frame("metadata: {name: bad}\nspec:\n  resources:\n    name: a\n"),
            errors: &[
                r#"bad.yaml:6: document 1 "bad": spec.resources: expected a list, found a mapping"#,
            ],
        },
        Case {
            name: "resources twice",
            spoil: frame("metadata: {name: bad}\nspec:\n  resources: []\n  resources: []\n"),
            errors: &[
                r#"bad.yaml:6: document 1 "bad": spec.resources: duplicate key, given before on line 5; remove one"#,
            ],
        },
        Case {
            name: "two documents of one name",
            spoil: frame("metadata: {name: good}\nspec: {}\n"),
            errors: &[
                r#"good.yaml:2: document 1 "good": metadata.name: the name is taken by bad.yaml:1 (document 1); rename one of the two documents"#,
            ],
        },
        Case {
            name: "two resources of one type and name",
            spoil: frame(
                "metadata: {name: bad}\nspec:\n  selector: {id: a}\n  resources:\n    - \"@type\": \
                 type.googleapis.com/envoy.config.cluster.v3.Cluster\n      name: good\n",
            ),
            errors: &[
                r#"good.yaml:7: document 1 "good": spec.resources[0] (Cluster "good"): the same type and name as bad.yaml:7 (document 1, spec.resources[0]), and a client may match both selectors; rename one or make the selectors exclude each other"#,
            ],
        },
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn resources() -> Vec<Case> {
    vec![
        Case {
            name: "a resource without @type",
            spoil: resource("name: bad"),
            errors: &[
                r#"bad.yaml:6: document 1 "bad": spec.resources[0]: missing "@type", such as "type.googleapis.com/envoy.config.cluster.v3.Cluster""#,
            ],
        },
        Case {
            name: "a resource that is a string",
            spoil: resource("bad"),
            errors: &[
                r#"bad.yaml:6: document 1 "bad": spec.resources[0]: expected a mapping with "@type", found a string"#,
            ],
        },
        Case {
            name: "a @type without its prefix",
            spoil: resource("\"@type\": envoy.config.cluster.v3.Cluster\nname: bad"),
            errors: &[
                r#"bad.yaml:6: document 1 "bad": spec.resources[0].@type: expected a type URL, such as "type.googleapis.com/envoy.config.cluster.v3.Cluster", found a string of another form"#,
            ],
        },
        Case {
            name: "an unknown @type",
            spoil: resource(
                "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Clutser\nname: bad",
            ),
            errors: &[
                r#"bad.yaml:6: document 1 "bad": spec.resources[0].@type: unknown message type "envoy.config.cluster.v3.Clutser", did you mean "envoy.config.cluster.v3.Cluster"?"#,
            ],
        },
        Case {
            name: "a resource without its name",
            spoil: resource(
                "\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            ),
            errors: &[
                r#"bad.yaml:6: document 1 "bad": spec.resources[0] (ClusterLoadAssignment): missing "cluster_name", the name that clients ask for"#,
            ],
        },
        Case {
            name: "a resource with an empty name",
            spoil: resource(
                "\"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\nname: \"\"",
            ),
            errors: &[
                r#"bad.yaml:6: document 1 "bad": spec.resources[0].name (Listener ""): must not be empty"#,
            ],
        },
        Case {
            name: "a type that is no resource",
            spoil: resource("\"@type\": type.googleapis.com/envoy.config.core.v3.Address"),
            errors: &[
                r#"bad.yaml:6: document 1 "bad": spec.resources[0] (Address): envoy.config.core.v3.Address has no name that a client could ask for; write it inside a resource, or under `resource` of a type.googleapis.com/envoy.service.discovery.v3.Resource that has a `name`"#,
            ],
        },
        Case {
            name: "an unknown field in snake_case",
            spoil: cluster("lb_polcy: RANDOM"),
            errors: &[
                r#"bad.yaml:8: document 1 "bad": spec.resources[0].lb_polcy (Cluster "bad"): unknown field "lb_polcy" of envoy.config.cluster.v3.Cluster, did you mean "lb_policy"?"#,
            ],
        },
        Case {
            name: "an unknown field in camelCase",
            spoil: cluster("connectTimout: 1s"),
            errors: &[
                r#"bad.yaml:8: document 1 "bad": spec.resources[0].connectTimout (Cluster "bad"): unknown field "connectTimout" of envoy.config.cluster.v3.Cluster, did you mean "connectTimeout"?"#,
            ],
        },
        Case {
            name: "a wrong enum",
            spoil: cluster("lb_policy: ROUND_ROBBIN"),
            errors: &[
                r#"bad.yaml:8: document 1 "bad": spec.resources[0].lb_policy (Cluster "bad"): unknown value "ROUND_ROBBIN" of envoy.config.cluster.v3.Cluster.LbPolicy, did you mean "ROUND_ROBIN"?"#,
            ],
        },
        Case {
            name: "a number where a string belongs",
            spoil: cluster("alt_stat_name: 80"),
            errors: &[
                r#"bad.yaml:8: document 1 "bad": spec.resources[0].alt_stat_name (Cluster "bad"): expected a string, found a number: put it in quotes"#,
            ],
        },
        Case {
            name: "a string where a message belongs",
            spoil: cluster("load_assignment: backend"),
            errors: &[
                r#"bad.yaml:8: document 1 "bad": spec.resources[0].load_assignment (Cluster "bad"): expected a mapping (envoy.config.endpoint.v3.ClusterLoadAssignment), found a string"#,
            ],
        },
        Case {
            name: "a mapping where a list belongs",
            spoil: cluster("load_assignment:\n  cluster_name: bad\n  endpoints: {}"),
            errors: &[
                r#"bad.yaml:10: document 1 "bad": spec.resources[0].load_assignment.endpoints (Cluster "bad"): expected a list, found a mapping"#,
            ],
        },
        Case {
            name: "a field by both names",
            spoil: cluster("lb_policy: RANDOM\nlbPolicy: RANDOM"),
            errors: &[
                r#"bad.yaml:9: document 1 "bad": spec.resources[0].lbPolicy (Cluster "bad"): duplicate field, given before on line 8; remove one"#,
            ],
        },
        Case {
            name: "two members of a oneof",
            spoil: cluster("type: EDS\ncluster_type: {name: envoy.clusters.dns}"),
            errors: &[
                r#"bad.yaml:9: document 1 "bad": spec.resources[0].cluster_type (Cluster "bad"): only one of the fields of "cluster_discovery_type" may be set, and "type" is set on line 8"#,
            ],
        },
        Case {
            name: "an integer over its range",
            spoil: cluster("per_connection_buffer_limit_bytes: 4294967296"),
            errors: &[
                r#"bad.yaml:8: document 1 "bad": spec.resources[0].per_connection_buffer_limit_bytes (Cluster "bad"): the number is out of the range of an unsigned 32-bit integer (0 to 4294967295)"#,
            ],
        },
        Case {
            name: "a negative unsigned integer",
            spoil: cluster("per_connection_buffer_limit_bytes: -1"),
            errors: &[
                r#"bad.yaml:8: document 1 "bad": spec.resources[0].per_connection_buffer_limit_bytes (Cluster "bad"): the number is out of the range of an unsigned 32-bit integer (0 to 4294967295)"#,
            ],
        },
        Case {
            name: "a fraction for an integer",
            spoil: cluster("per_connection_buffer_limit_bytes: 1.5"),
            errors: &[
                r#"bad.yaml:8: document 1 "bad": spec.resources[0].per_connection_buffer_limit_bytes (Cluster "bad"): expected a whole number that is not negative, found another number"#,
            ],
        },
        Case {
            name: "a duration in minutes",
            spoil: cluster("connect_timeout: 1m"),
            errors: &[
                r#"bad.yaml:8: document 1 "bad": spec.resources[0].connect_timeout (Cluster "bad"): expected a duration as seconds with the suffix s, such as "1.5s", found a string of another form"#,
            ],
        },
        Case {
            name: "a duration as a number",
            spoil: cluster("connect_timeout: 5"),
            errors: &[
                r#"bad.yaml:8: document 1 "bad": spec.resources[0].connect_timeout (Cluster "bad"): expected a duration as seconds with the suffix s, such as "1.5s", found a number"#,
            ],
        },
        Case {
            name: "yes for a boolean",
            spoil: cluster("ignore_health_on_host_removal: yes"),
            errors: &[
                r#"bad.yaml:8: document 1 "bad": spec.resources[0].ignore_health_on_host_removal (Cluster "bad"): expected true or false, found a string: write true or false without quotes"#,
            ],
        },
        Case {
            name: "bytes that are not base64, which may be a key",
            spoil: resource(
                "\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\nname: bad\n\
                 tls_certificate:\n  private_key: {inline_bytes: \"-----BEGIN SECRET\"}",
            ),
            errors: &[
                r#"bad.yaml:9: document 1 "bad": spec.resources[0].tls_certificate.private_key.inline_bytes (Secret "bad"): expected bytes as a base64 string, found a string that is not base64"#,
            ],
        },
        Case {
            name: "a key where a mapping belongs is not repeated",
            spoil: resource(
                "\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\nname: bad\n\
                 tls_certificate:\n  private_key: \"-----BEGIN SECRET\"",
            ),
            errors: &[
                r#"bad.yaml:9: document 1 "bad": spec.resources[0].tls_certificate.private_key (Secret "bad"): expected a mapping (envoy.config.core.v3.DataSource), found a string"#,
            ],
        },
        Case {
            name: "a mistake inside a nested Any",
            spoil: cluster(
                "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \
                 \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    \
                 explicit_http_config:\n      http2_protocol_options: {max_streams: 5}",
            ),
            errors: &[
                r#"bad.yaml:12: document 1 "bad": spec.resources[0].typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"].explicit_http_config.http2_protocol_options.max_streams (Cluster "bad"): unknown field "max_streams" of envoy.config.core.v3.Http2ProtocolOptions, did you mean "max_concurrent_streams"?"#,
            ],
        },
        Case {
            name: "an unknown nested Any",
            spoil: cluster(
                "transport_socket:\n  name: tls\n  typed_config:\n    \
                 \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContex",
            ),
            errors: &[
                r#"bad.yaml:11: document 1 "bad": spec.resources[0].transport_socket.typed_config.@type (Cluster "bad"): unknown message type "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContex", did you mean "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"?"#,
            ],
        },
        Case {
            name: "a key of a map twice",
            spoil: cluster("metadata:\n  filter_metadata:\n    a: {}\n    a: {}"),
            errors: &[
                r#"bad.yaml:11: document 1 "bad": spec.resources[0].metadata.filter_metadata.a (Cluster "bad"): duplicate key, given before on line 10; remove one"#,
            ],
        },
        Case {
            name: "null in a list",
            spoil: cluster("load_assignment:\n  cluster_name: bad\n  endpoints:\n    -"),
            errors: &[
                r#"bad.yaml:11: document 1 "bad": spec.resources[0].load_assignment.endpoints[0] (Cluster "bad"): expected a mapping, found null"#,
            ],
        },
        Case {
            name: "several mistakes, all told",
            spoil: cluster("connect_timeout: 1m\nlb_policy: 1e99\nfoo: bar"),
            errors: &[
                r#"bad.yaml:8: document 1 "bad": spec.resources[0].connect_timeout (Cluster "bad"): expected a duration as seconds with the suffix s, such as "1.5s", found a string of another form"#,
                r#"bad.yaml:9: document 1 "bad": spec.resources[0].lb_policy (Cluster "bad"): the number is out of the range of a 32-bit integer (-2147483648 to 2147483647)"#,
                r#"bad.yaml:10: document 1 "bad": spec.resources[0].foo (Cluster "bad"): unknown field "foo" of envoy.config.cluster.v3.Cluster"#,
            ],
        },
    ]
}

#[allow(clippy::too_many_lines, reason = "it is a table")]
fn wrappers() -> Vec<Case> {
    // Lines below `@type` of the wrapper; the resource is on line 9.
    let wrapped = |fields: &str| {
        resource(&format!(
            "\"@type\": type.googleapis.com/envoy.service.discovery.v3.Resource\n{fields}"
        ))
    };
    let around = |fields: &str| {
        wrapped(&format!(
            "{fields}\nresource:\n  \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: a\n"
        ))
    };
    vec![
        Case {
            name: "a wrapper around nothing",
            spoil: wrapped("name: a"),
            errors: &[
                r#"bad.yaml:6: document 1 "bad": spec.resources[0] (Resource "a"): missing "resource""#,
            ],
        },
        Case {
            name: "a wrapper with a field that it does not have",
            spoil: around("alias: [b]"),
            errors: &[
                r#"bad.yaml:7: document 1 "bad": spec.resources[0].alias (Cluster "a"): unknown field "alias" of envoy.service.discovery.v3.Resource, did you mean "aliases"?"#,
            ],
        },
        Case {
            name: "a wrapper that renames what clients look for by its own name",
            spoil: around("name: b"),
            errors: &[
                r#"bad.yaml:7: document 1 "bad": spec.resources[0].name (Cluster "a"): the resource calls itself "a", and clients look for that; give the same name, or leave this one out"#,
            ],
        },
        Case {
            name: "a version, and a time to live that nobody can keep",
            spoil: around("version: \"1\"\nttl: 0.5s"),
            errors: &[
                r#"bad.yaml:7: document 1 "bad": spec.resources[0].version (Cluster "a"): must not be set: the version is a hash of the content; leave it out"#,
                r#"bad.yaml:8: document 1 "bad": spec.resources[0].ttl (Cluster "a"): must be at least 1s: clients hear of the resource twice in that time"#,
            ],
        },
        Case {
            name: "what is for caches and dynamic parameters",
            spoil: around(
                "cacheControl: {doNotCache: true}\nresourceName: {name: a}\nmetadata: {}",
            ),
            errors: &[
                r#"bad.yaml:8: document 1 "bad": spec.resources[0].resourceName (Cluster "a"): must not be set: dynamic parameters are not served; give the name under `name`"#,
                r#"bad.yaml:7: document 1 "bad": spec.resources[0].cacheControl (Cluster "a"): must not be set: it is for caching proxies; leave it out"#,
                r#"bad.yaml:9: document 1 "bad": spec.resources[0].metadata (Cluster "a"): must not be set: no client reads it; put it into the resource's own metadata"#,
            ],
        },
        Case {
            name: "aliases that are empty or given already",
            spoil: around("aliases: [b, \"\", b]"),
            errors: &[
                r#"bad.yaml:7: document 1 "bad": spec.resources[0].aliases[1] (Cluster "a"): must not be empty"#,
                r#"bad.yaml:7: document 1 "bad": spec.resources[0].aliases[2] (Cluster "a"): the name is given already; remove one"#,
            ],
        },
        Case {
            name: "an alias that is the name of another resource",
            spoil: around("aliases: [a, good]"),
            errors: &[
                r#"good.yaml:7: document 1 "good": spec.resources[0] (Cluster "good"): the same type and name as bad.yaml:6 (document 1, spec.resources[0]), and a client may match both selectors; rename one or make the selectors exclude each other"#,
            ],
        },
        Case {
            name: "a wrapper in a wrapper",
            spoil: wrapped(
                "resource:\n  \"@type\": type.googleapis.com/envoy.service.discovery.v3.Resource\n  name: a\n",
            ),
            errors: &[
                r#"bad.yaml:8: document 1 "bad": spec.resources[0].resource (Resource "a"): a Resource cannot hold another Resource; write what is in it here"#,
            ],
        },
        Case {
            name: "a broken rule inside a wrapper",
            spoil: wrapped(
                "ttl: 5s\naliases: [b]\nresource:\n  \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n  \
                 name: a\n  connectTimeout: 0s",
            ),
            errors: &[
                r#"bad.yaml:12: document 1 "bad": spec.resources[0].resource.connectTimeout (Cluster "a"): must be greater than 0s"#,
            ],
        },
        Case {
            name: "a message without a name in a wrapper without one",
            spoil: wrapped("resource: {\"@type\": type.googleapis.com/acme.Policy, value: AAEC}"),
            errors: &[
                r#"bad.yaml:7: document 1 "bad": spec.resources[0].resource: acme.Policy has no name that a client could ask for; write it inside a resource, or under `resource` of a type.googleapis.com/envoy.service.discovery.v3.Resource that has a `name`"#,
            ],
        },
        Case {
            name: "an unknown type that is not base64",
            spoil: wrapped(
                "name: a\nresource: {\"@type\": type.googleapis.com/acme.Policy, value: \"not base64\"}",
            ),
            errors: &[
                r#"bad.yaml:8: document 1 "bad": spec.resources[0].resource.value: expected bytes as a base64 string, found a string that is not base64"#,
            ],
        },
    ]
}
