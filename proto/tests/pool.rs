//! The pool has what configurations use, and options can be read from it.

use isthmus_proto::descriptor_pool;
use prost_reflect::{Kind, Value};

#[test]
fn has_what_configurations_use() {
    for name in [
        "envoy.config.bootstrap.v3.Bootstrap",
        "envoy.config.cluster.v3.Cluster",
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
        "envoy.config.listener.v3.Listener",
        "envoy.config.route.v3.RouteConfiguration",
        "envoy.config.route.v3.ScopedRouteConfiguration",
        "envoy.config.core.v3.TypedExtensionConfig",
        "envoy.extensions.filters.http.golang.v3alpha.Config",
        "envoy.extensions.filters.http.router.v3.Router",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        "envoy.service.discovery.v3.DeltaDiscoveryRequest",
        "envoy.service.runtime.v3.Runtime",
        "google.protobuf.Any",
        "google.protobuf.Duration",
        "google.protobuf.Struct",
        "google.protobuf.Timestamp",
        "stats.PluginConfig",
        "udpa.type.v1.TypedStruct",
        "xds.type.v3.TypedStruct",
    ] {
        assert!(
            descriptor_pool().get_message_by_name(name).is_some(),
            "{name}"
        );
    }
}

#[test]
fn validation_rules_can_be_read() {
    struct Case {
        message: &'static str,
        field: &'static str,
        rule: (&'static str, &'static str, u64),
    }
    let cases = [
        Case {
            message: "envoy.config.cluster.v3.Cluster",
            field: "name",
            rule: ("string", "min_len", 1),
        },
        Case {
            // From third_party: protox has to keep the options as protoc does.
            message: "envoy.extensions.filters.http.golang.v3alpha.Config",
            field: "library_id",
            rule: ("string", "min_len", 1),
        },
    ];
    let extension = descriptor_pool()
        .get_extension_by_name("validate.rules")
        .expect("PGV is in the pool");
    for Case {
        message,
        field,
        rule: (kind, bound, wanted),
    } in cases
    {
        let desc = descriptor_pool()
            .get_message_by_name(message)
            .expect(message);
        let options = desc.get_field_by_name(field).expect(field).options();
        let rules = options.get_extension(&extension);
        let rules = rules
            .as_message()
            .expect("rules are a message")
            .get_field_by_name(kind)
            .expect(kind);
        let found = rules
            .as_message()
            .expect("a kind of rules is a message")
            .get_field_by_name(bound);
        assert_eq!(
            found.as_deref(),
            Some(&Value::U64(wanted)),
            "{message}.{field}"
        );
    }
}

#[test]
fn no_field_is_a_group() {
    // The configuration reader does not read groups.
    for message in descriptor_pool().all_messages().filter(|message| {
        let package = message.package_name();
        package.starts_with("envoy.") || package.starts_with("xds.") || package.starts_with("udpa.")
    }) {
        for field in message.fields() {
            assert!(!field.is_group(), "{}", field.full_name());
            assert!(
                !matches!(field.kind(), Kind::Message(_)) || !field.is_packed(),
                "{}",
                field.full_name()
            );
        }
    }
}
