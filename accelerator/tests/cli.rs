//! The program as users start it: exit codes, one line of error, nothing touched.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Output},
};

#[test]
fn refuses_what_it_cannot_do_with_one_line_and_an_exit_code() {
    struct Case {
        name: &'static str,
        args: &'static [&'static str],
        file: Option<&'static str>,
        exit_code: i32,
        error: &'static str,
    }
    let cases = [
        Case {
            name: "a FILE that does not exist",
            args: &["run", "--config", "FILE"],
            file: None,
            exit_code: 1,
            error: "error: FILE cannot be read: No such file or directory (os error 2)\n",
        },
        Case {
            name: "a FILE of another kind",
            args: &["run", "--config", "FILE"],
            file: Some("apiVersion: isthmus.io/v1alpha1\nkind: Pod\npods: []\n"),
            exit_code: 1,
            error: "error: FILE: kind: \"Pod\" is not for the accelerator: expected \"NodeConfig\"\n",
        },
        Case {
            name: "status of nothing",
            args: &["status", "--pin-dir", "PINS"],
            file: None,
            exit_code: 1,
            error: "error: nothing is loaded under PINS; start it with `isthmus-accelerator run`\n",
        },
    ];

    for Case {
        name,
        args,
        file,
        exit_code,
        error,
    } in cases
    {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("node.yaml");
        if let Some(text) = file {
            fs::write(&path, text).expect("the directory is writable");
        }
        let output = run(dir.path(), args);
        assert_eq!(stderr(dir.path(), &output), error, "{name}");
        assert_eq!(output.status.code(), Some(exit_code), "{name}");
        assert_eq!(output.stdout, b"", "{name}");
    }
}

#[test]
fn wrong_usage_exits_2_and_says_how_it_is_used() {
    for args in [
        &[][..],
        &["run"],
        &["status", "-o", "yaml"],
        &["detach", "now"],
        &["start"],
    ] {
        let output = run(Path::new("/nonexistent"), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("--help"),
            "{args:?}"
        );
    }
}

#[test]
fn says_which_right_is_missing() {
    // Anybody may run what lies there, unlike in the build directory of root.
    let dir = tempfile::tempdir_in("/tmp").expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let program = dir.path().join("isthmus-accelerator");
    fs::copy(env!("CARGO_BIN_EXE_isthmus-accelerator"), &program).expect("it was built");
    for args in [
        &["run", "--config", "/nonexistent"][..],
        &["status"],
        &["detach"],
    ] {
        let mut command = Command::new(&program);
        let output = command
            .args(args)
            .uid(65534)
            .gid(65534)
            .output()
            .expect("this test runs as root");
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "error: CAP_NET_ADMIN is missing: this process does not have it; run it as root, or with \
             CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN\n",
            "{args:?}"
        );
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn probe_answers_in_both_forms_and_touches_nothing() {
    let output = run(Path::new("/nonexistent"), &["probe", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let can_redirect = report["can_redirect"].as_bool().expect("it says so");
    assert_eq!(output.status.code(), Some(if can_redirect { 0 } else { 2 }));
    let features = report["features"].as_array().expect("a list");
    let is_missing = |feature: &serde_json::Value| feature["is_present"] == false;
    assert!(
        features
            .iter()
            .filter(|feature| is_missing(feature))
            .all(|feature| feature["remedy"].is_string())
    );

    let table = run(Path::new("/nonexistent"), &["probe"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    for feature in features {
        let name = feature["feature"].as_str().expect("a name");
        assert!(table.contains(name), "{name}:\n{table}");
    }
}

#[test]
fn detaching_nothing_is_no_error() {
    let dir = tempfile::tempdir().expect("a directory");
    for _ in 0..2 {
        let output = run(
            dir.path(),
            &["detach", "--pin-dir", "PINS", "--runtime-dir", "RUNTIME"],
        );
        assert_eq!(stderr(dir.path(), &output), "");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "nothing was loaded\n"
        );
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(
            fs::read_dir(dir.path()).expect("it is there").count(),
            0,
            "nothing is left behind"
        );
    }
}

#[test]
fn help_has_examples() {
    for args in [&["--help"][..], &["run", "--help"], &["detach", "--help"]] {
        let output = run(Path::new("/nonexistent"), args);
        let help = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{args:?}");
        assert!(
            help.contains("Examples:")
                || help.contains("ready: ")
                || help.contains("Removes programs")
        );
    }
}

// Words in capitals stand for paths in `dir`.
fn run(dir: &Path, args: &[&str]) -> Output {
    let place = |arg: &&str| match *arg {
        "FILE" => dir.join("node.yaml").into_os_string(),
        "PINS" => dir.join("pins").into_os_string(),
        "RUNTIME" => dir.join("runtime").into_os_string(),
        other => other.into(),
    };
    Command::new(env!("CARGO_BIN_EXE_isthmus-accelerator"))
        .args(args.iter().map(place))
        .env_remove("RUST_LOG")
        .output()
        .expect("the program was built with this test")
}

fn stderr(dir: &Path, output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = text.replace(&dir.join("node.yaml").display().to_string(), "FILE");
    text.replace(&dir.join("pins").display().to_string(), "PINS")
}
