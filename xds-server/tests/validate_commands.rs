//! `isthmus-xds validate` and `diff`: their text, their JSON and their exit codes.
//!
//! The directories and the answers are in `tests/validate/`.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_isthmus-xds"))
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/validate"))
        .output()
        .expect("the program runs")
}

fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/validate")
        .join(name);
    std::fs::read_to_string(path).expect("an answer")
}

#[test]
fn an_answer_is_the_expected_text_and_exit_code() {
    let cases: [(&[&str], i32, &str); 7] = [
        (&["validate", "bad"], 1, "bad.txt"),
        (&["validate", "doubtful"], 0, "doubtful.txt"),
        (&["validate", "--strict", "doubtful"], 1, "doubtful.txt"),
        (&["validate", "-o", "json", "doubtful"], 0, "doubtful.json"),
        (&["validate", "nowhere"], 2, ""),
        (
            &["diff", "doubtful", "--node", "x", "--against", "served"],
            0,
            "diff.txt",
        ),
        (
            &[
                "diff",
                "doubtful",
                "--node",
                "x",
                "--against",
                "served",
                "-o",
                "json",
            ],
            0,
            "diff.json",
        ),
    ];
    for (arguments, code, answer) in cases {
        let output = run(arguments);
        let wanted = if answer.is_empty() {
            String::new()
        } else {
            golden(answer)
        };
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            wanted,
            "{arguments:?}"
        );
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert_eq!(
            output.stderr.is_empty(),
            code != 2,
            "{arguments:?} says why"
        );
    }
}

#[test]
fn what_cannot_be_asked_says_so_and_exits_with_2() {
    let cases: [(&[&str], &str); 5] = [
        (&["validate"], "<DIR>"),
        (&["diff", "doubtful"], "--node <ID>"),
        (
            &["diff", "doubtful", "--node", "x", "--metadata", "k"],
            "KEY=VALUE",
        ),
        (
            &["diff", "doubtful", "--node", "x", "--server", "127.0.0.1:1"],
            "is not an address of the admin endpoint",
        ),
        (&[], "--config-dir <DIR>"),
    ];
    for (arguments, wanted) in cases {
        let output = run(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(wanted), "{arguments:?}: {error}");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn help_has_examples() {
    for arguments in [
        &["--help"][..],
        &["validate", "--help"],
        &["diff", "--help"],
    ] {
        let output = run(arguments);
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(help.contains("Examples:"), "{arguments:?}: {help}");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
}

/// The server's answer has versions, which is all that is compared.
#[test]
fn a_running_server_is_asked_for_what_the_client_has() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = format!("http://{}", listener.local_addr().expect("an address"));
    let answer = r#"{"generation": 3, "clients": [{"stream": 1}], "scopes": [{"documents": ["a"], "types": [
        {"typeUrl": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "version": "1", "generation": 3,
         "resources": [{"name": "backend", "version": "0000000000000000", "resource": {}},
                       {"name": "gone", "version": "0000000000000000", "resource": "[redacted]"}]}]}]}"#;
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a request");
            request.extend(byte);
        }
        write!(stream, "HTTP/1.0 200 OK\r\n\r\n{answer}").expect("an answer");
        String::from_utf8(request).expect("text")
    });
    let output = run(&["diff", "doubtful", "--node", "a b", "--server", &server]);
    let request = serving.join().expect("served");
    assert!(
        request.starts_with("GET /config_dump?node=a%20b HTTP/1.0\r\n"),
        "{request}"
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in ["~ cds backend", "- cds gone", "+ lds web", "+ rds routes"] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert_eq!(output.status.code(), Some(0));
}
