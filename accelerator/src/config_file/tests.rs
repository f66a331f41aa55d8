//! Files as people and Kubernetes leave them.

use std::{fs, os::unix::fs::symlink};

use super::*;

const HEAD: &str = "apiVersion: isthmus.io/v1alpha1\nkind: NodeConfig\n";

#[test]
#[allow(clippy::too_many_lines, reason = "a table, one case after the other")]
fn says_what_is_wrong_and_keeps_what_was_good() {
    struct Case {
        name: &'static str,
        make: fn(&Path),
        // Without the path in front.
        error: &'static str,
    }
    let cases = [
        Case {
            name: "no file",
            make: |path| fs::remove_file(path).expect("it was there"),
            error: " cannot be read: No such file or directory (os error 2)",
        },
        Case {
            name: "a directory",
            make: |path| {
                fs::remove_file(path).expect("it was there");
                fs::create_dir(path).expect("the directory above is writable");
            },
            error: " is no regular file",
        },
        Case {
            name: "a pipe, which must not block",
            make: |path| {
                fs::remove_file(path).expect("it was there");
                nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
            },
            error: " is no regular file",
        },
        Case {
            name: "a symbolic link to itself",
            make: |path| {
                fs::remove_file(path).expect("it was there");
                symlink(path, path).expect("a link");
            },
            error: " cannot be read: Too many levels of symbolic links (os error 40)",
        },
        Case {
            name: "a dangling symbolic link",
            make: |path| {
                fs::remove_file(path).expect("it was there");
                symlink("nowhere", path).expect("a link");
            },
            error: " cannot be read: No such file or directory (os error 2)",
        },
        Case {
            name: "an empty file",
            make: |path| write(path, ""),
            error: ": the document is empty: to accelerate no pod, write `pods: []` under its apiVersion and kind",
        },
        Case {
            name: "a binary file",
            make: |path| fs::write(path, [0x7f, b'E', b'L', b'F', 0xff]).expect("writable"),
            error: ": byte 4 is not UTF-8: a NodeConfig is a YAML text file",
        },
        Case {
            name: "10 MB",
            make: |path| fs::write(path, vec![b'#'; 10 << 20]).expect("writable"),
            error: ": the document takes 4194305 bytes or more, over the limit of 4194304",
        },
        Case {
            name: "broken YAML",
            make: |path| write(path, "pods: [\n"),
            error: ": line 1, column 7: pods: unclosed bracket '['",
        },
        Case {
            name: "another kind",
            make: |path| {
                write(
                    path,
                    "apiVersion: isthmus.io/v1alpha1\nkind: Pod\npods: []\n",
                );
            },
            error: ": kind: \"Pod\" is not for the accelerator: expected \"NodeConfig\"",
        },
        Case {
            name: "another version",
            make: |path| write(path, "apiVersion: v1\nkind: NodeConfig\npods: []\n"),
            error: ": apiVersion: \"v1\" is not known: expected \"isthmus.io/v1alpha1\"",
        },
        Case {
            name: "an unknown field",
            make: |path| write(path, &format!("{HEAD}pods: []\npod: []\n")),
            error: ": line 4, column 1: pod: unknown field `pod`, expected one of apiVersion, kind, pods, dnsCapture, dnsServers",
        },
        Case {
            name: "no pods",
            make: |path| write(path, HEAD),
            error: ": line 2, column 1: missing field `pods`",
        },
        Case {
            name: "one name twice",
            make: |path| {
                let pods = "pods:\n- {name: a/b, netns: /run/netns/a}\n- {name: a/b, netns: /run/netns/b}\n";
                write(path, &format!("{HEAD}{pods}"));
            },
            error: ": pods[1].name: pod a/b is listed twice: pods[0] has this name too",
        },
        Case {
            name: "one network namespace twice",
            make: |path| {
                let pods = "pods:\n- {name: a/a, netns: /run/netns/a}\n- {name: a/b, netns: /run/netns/a}\n";
                write(path, &format!("{HEAD}{pods}"));
            },
            error: ": pods[1].netns: pod a/b: /run/netns/a is the network namespace of pod a/a already",
        },
        Case {
            name: "a relative network namespace",
            make: |path| write(path, &format!("{HEAD}pods:\n- {{name: a/a, netns: a}}\n")),
            error: ": pods[0].netns: pod a/a: netns \"a\" is not an absolute path without `..`",
        },
        Case {
            name: "a bad annotation",
            make: |path| {
                let annotation =
                    "annotations: {traffic.sidecar.istio.io/includeOutboundIPRanges: 198.18.0.1}";
                write(
                    path,
                    &format!("{HEAD}pods:\n- {{name: a/a, netns: /a, {annotation}}}\n"),
                );
            },
            error: ": pods[0].annotations[\"traffic.sidecar.istio.io/includeOutboundIPRanges\"]: pod a/a: \
                    annotation traffic.sidecar.istio.io/includeOutboundIPRanges: \"198.18.0.1\" is no IP \
                    range: the prefix length is missing: one address is written as 198.18.0.1/32",
        },
        Case {
            name: "two documents",
            make: |path| write(path, &format!("{HEAD}pods: []\n---\n{HEAD}pods: []\n")),
            error: ": line 5, column 1: a second document begins here: the accelerator reads one NodeConfig",
        },
    ];

    for Case { name, make, error } in cases {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("node.yaml");
        write(&path, &format!("{HEAD}pods: []\n"));
        let mut file = ConfigFile::new(path.clone());
        assert!(
            matches!(file.look_at(later()), Ok(Look::Changed(_))),
            "{name}"
        );

        make(&path);
        let found = render_chain(&file.look_at(later()).expect_err(name));
        assert_eq!(found, format!("{}{error}", path.display()), "{name}");
        assert!(
            matches!(file.look_at(later()), Ok(Look::Unchanged)),
            "{name}: reported twice"
        );
    }
}

#[test]
fn waits_for_a_writer_but_not_for_ever() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("node.yaml");
    write(&path, &format!("{HEAD}pods: []\n"));
    let modified = fs::metadata(&path)
        .and_then(|metadata| metadata.modified())
        .expect("it is there");
    let mut file = ConfigFile::new(path);

    for _ in 0..MAX_POSTPONED {
        assert!(matches!(file.look_at(modified), Ok(Look::Unsettled)));
    }
    assert!(matches!(file.look_at(modified), Ok(Look::Changed(_))));
}

#[test]
fn a_clock_that_was_set_back_is_no_writer() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("node.yaml");
    write(&path, &format!("{HEAD}pods: []\n"));
    let mut file = ConfigFile::new(path);
    assert!(matches!(
        file.look_at(SystemTime::UNIX_EPOCH),
        Ok(Look::Changed(_))
    ));
}

#[test]
fn follows_a_config_map() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    for (version, pods) in [("..1", "[]"), ("..2", "[{name: a/b, netns: /run/netns/b}]")] {
        fs::create_dir(root.join(version)).expect("a directory");
        write(
            &root.join(version).join("node.yaml"),
            &format!("{HEAD}pods: {pods}\n"),
        );
    }
    symlink("..1", root.join("..data")).expect("a link");
    symlink("..data/node.yaml", root.join("node.yaml")).expect("a link");
    let mut file = ConfigFile::new(root.join("node.yaml"));
    assert!(matches!(file.look_at(later()), Ok(Look::Changed(config)) if config.pods.is_empty()));

    symlink("..2", root.join("..data_tmp")).expect("a link");
    fs::rename(root.join("..data_tmp"), root.join("..data")).expect("a rename");
    assert!(matches!(file.look_at(later()), Ok(Look::Changed(config)) if config.pods.len() == 1));
}

#[test]
fn what_was_forgotten_is_new_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("node.yaml");
    write(&path, &format!("{HEAD}pods: []\n"));
    let mut file = ConfigFile::new(path);
    assert!(matches!(file.look_at(later()), Ok(Look::Changed(_))));
    assert!(matches!(file.look_at(later()), Ok(Look::Unchanged)));
    file.forget();
    assert!(matches!(file.look_at(later()), Ok(Look::Changed(_))));
}

fn later() -> SystemTime {
    SystemTime::now() + 2 * SETTLE
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("the directory is writable");
}
