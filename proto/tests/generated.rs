//! The committed Rust code is what the proto files in `include/` say, and `UPDATE_GENERATED=1` makes it anew.

use std::path::Path;
use std::{env, fs};

use tempfile::TempDir;

const PROTO: &str = "isthmus/xds/v1/control.proto";
const CODE: &str = "isthmus.xds.v1.rs";

#[test]
fn committed_code_equals_its_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let set = protox::compile([PROTO], [root.join("include")])
        .unwrap_or_else(|error| panic!("{error:?}"));
    let dir = TempDir::new().expect("a folder");
    tonic_prost_build::configure()
        .out_dir(dir.path())
        .build_transport(false)
        .compile_well_known_types(true)
        .extern_path(".google.protobuf", "::envoy_types::pb::google::protobuf")
        .compile_fds(set)
        .expect("code is generated");
    let wanted = fs::read_to_string(dir.path().join(CODE)).expect("code is generated");

    let committed = root.join("src/generated").join(CODE);
    if env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(&committed, &wanted).expect("the file can be written");
    }
    let found = fs::read_to_string(&committed).expect("the code is committed");
    assert!(
        found == wanted,
        "{CODE} is not what {PROTO} gives; run UPDATE_GENERATED=1 cargo test -p isthmus-proto --test generated"
    );
}
