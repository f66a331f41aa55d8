//! `config_dir::load`: what a directory gives, and that the same directory always gives the same bytes.

use std::fs;

use isthmus_xds::config_dir;

const EDGE: &str = r#"
apiVersion: isthmus.io/v1alpha1
kind: EnvoyResources
metadata: {name: edge}
spec:
  selector: {cluster: edge, metadata: {role: gateway}}
  resources:
    - "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
      name: backend
      connect_timeout: 0.25s
      lbPolicy: LEAST_REQUEST
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicitHttpConfig: {http2_protocol_options: {maxConcurrentStreams: 100}}
"#;

#[test]
fn loads_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("edge.yaml"), EDGE).unwrap();
    let config = config_dir::load(dir.path()).unwrap();
    assert_eq!(config.documents.len(), 1);
    assert_eq!(&*config.documents[0].resources[0].name, "backend");
    fs::write(
        dir.path().join("edge.yaml"),
        EDGE.replace("lbPolicy", "lbPolcy"),
    )
    .unwrap();
    let errors = config_dir::load(dir.path()).unwrap_err();
    println!("{}", errors[0]);
}
