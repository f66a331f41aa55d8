//! A soak of seconds: memory and convergence are judged as in the long one, processor time is not,
//! and a client is late after a minute only, since the machine may do other things.

use std::process::Command;

#[test]
fn a_small_soak_holds() {
    let ran = Command::new(env!("CARGO_BIN_EXE_isthmus-bench"))
        .args(["soak", "--lenient", "--streams", "300", "--seconds", "10"])
        .output()
        .expect("the program starts");
    let text = String::from_utf8_lossy(&ran.stdout);
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{text}{errors}");
    for finding in ["100 changes", "0 of 1350 over", "grown by", "among all"] {
        assert!(text.contains(finding), "no {finding}: {text}");
    }
}
