//! `descriptors.binpb` is what its sources say, and `UPDATE_DESCRIPTORS=1` makes it anew.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost_reflect::DescriptorPool;
use protox::Compiler;
use protox::file::{ChainFileResolver, DescriptorSetFileResolver, IncludeFileResolver};

/// Folders that imports are relative to.
const INCLUDES: [&str; 3] = ["include", "third_party/envoy-contrib", "third_party/xds"];

#[test]
fn committed_set_equals_its_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("descriptors.binpb");
    let upstream = fs::read(envoy_types_source(root).join("src/generated/types.bin"))
        .expect("envoy-types carries its descriptor set");
    // Concatenating two encoded messages merges them, and merging appends the files of one set to the other.
    let mut wanted = upstream.clone();
    wanted.extend(compile_third_party(root, &upstream));

    if env::var_os("UPDATE_DESCRIPTORS").is_some() {
        fs::write(&committed, &wanted).expect("the file can be written");
    }
    let found = fs::read(&committed).expect("the set is committed");
    assert!(
        found == wanted,
        "descriptors.binpb ({} bytes) is not what its sources give ({} bytes); run \
         UPDATE_DESCRIPTORS=1 cargo test -p isthmus-proto --test descriptor_set",
        found.len(),
        wanted.len()
    );
}

fn compile_third_party(root: &Path, upstream: &[u8]) -> Vec<u8> {
    let pool = DescriptorPool::decode(upstream).expect("upstream's set decodes");
    let mut resolver = ChainFileResolver::new();
    let mut files = Vec::new();
    for include in INCLUDES.map(|include| root.join(include)) {
        collect_protos(&include, &include, &mut files);
        resolver.add(IncludeFileResolver::new(include));
    }
    resolver.add(DescriptorSetFileResolver::new(prost_types_set(&pool)));
    files.sort();
    files.retain(|file| pool.get_file_by_name(&file.to_string_lossy()).is_none());
    let mut compiler = Compiler::with_file_resolver(resolver);
    compiler.include_imports(false).include_source_info(false);
    compiler
        .open_files(files)
        .unwrap_or_else(|error| panic!("{error:?}"));
    compiler.encode_file_descriptor_set()
}

fn prost_types_set(pool: &DescriptorPool) -> prost_reflect::prost_types::FileDescriptorSet {
    let file = pool.file_descriptor_protos().cloned().collect();
    prost_reflect::prost_types::FileDescriptorSet { file }
}

fn collect_protos(include: &Path, folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("third_party is there") {
        let path = entry.expect("entries can be listed").path();
        if path.is_dir() {
            collect_protos(include, &path, files);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            files.push(
                path.strip_prefix(include)
                    .expect("below its include")
                    .to_owned(),
            );
        }
    }
}

/// Asks cargo where the sources of the pinned `envoy-types` are: in its registry, or vendored.
fn envoy_types_source(root: &Path) -> PathBuf {
    let version = run(root, "RUSTC", "rustc", &["-vV"]);
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .expect("rustc names its host");
    // Other platforms' dependencies may never have been downloaded.
    let arguments = [
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        host,
    ];
    let metadata: serde_json::Value =
        serde_json::from_str(&run(root, "CARGO", "cargo", &arguments)).expect("cargo prints JSON");
    let packages = metadata["packages"]
        .as_array()
        .expect("cargo lists packages");
    let package = packages
        .iter()
        .find(|package| package["name"] == "envoy-types")
        .expect("envoy-types is a dependency");
    let manifest = package["manifest_path"]
        .as_str()
        .expect("a package has a manifest");
    Path::new(manifest)
        .parent()
        .expect("a manifest is in a folder")
        .to_owned()
}

fn run(folder: &Path, variable: &str, default: &str, arguments: &[&str]) -> String {
    let program = env::var_os(variable).unwrap_or_else(|| default.into());
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("the tool runs");
    assert!(
        output.status.success(),
        "{default} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("tools print UTF-8")
}
