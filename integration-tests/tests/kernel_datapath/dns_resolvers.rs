//! The resolvers that applications bring, as they are: glibc's, musl's and Go's.

use std::{io::Write as _, net::Ipv4Addr, path::PathBuf, process::Command};

use isthmus_integration_tests::programs;

use crate::{
    dns_lab::{AGENT, Capture, Lab, Mode, OTHERS, SERVERS, UPSTREAM},
    fixture::APP,
};

/// Runs a command, as the application, where these files are the system's.
const SCRIPT: &str = "mount --bind \"$1\" /etc/resolv.conf && mount --bind \"$2\" /etc/nsswitch.conf && shift 2 && \
                      exec setpriv --reuid \"$0\" --regid \"$0\" --clear-groups -- \"$@\"";

fn resolvers() -> [(&'static str, Vec<PathBuf>); 3] {
    let own = |name: &str| {
        let dir = programs::library(name).expect("`cargo xtask setup` has built it");
        vec![dir.join(name)]
    };
    let getent = programs::system("getent").expect("a C library has it");
    [
        ("glibc", vec![getent, "ahostsv4".into()]),
        ("musl", own("musl-resolver")),
        ("Go", own("go-resolver")),
    ]
}

/// The address that a resolver finds in the pod for a name, under this resolv.conf.
fn resolve(lab: &Lab, resolver: &[PathBuf], resolv_conf: &str) -> Result<Ipv4Addr, String> {
    let file = |text: &str| {
        let mut file = tempfile::NamedTempFile::new().expect("a file can be made");
        file.write_all(text.as_bytes()).expect("it can be written");
        file
    };
    let (conf, switch) = (file(resolv_conf), file("hosts: dns\n"));
    // The application reads them as another user.
    for file in [&conf, &switch] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file()
            .set_permissions(mode)
            .expect("they can be shown to all");
    }
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", SCRIPT])
        .arg(APP.to_string())
        .args([conf.path(), switch.path()])
        .args(resolver)
        .arg("who.example");
    let output = lab.pod.run_as(0, move || command.output());
    let output = output.expect("util-linux is installed (`cargo xtask setup`)");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = text.split_whitespace().next().map(str::parse);
    match found {
        Some(Ok(addr)) if output.status.success() => Ok(addr),
        _ => Err(format!(
            "{}: {text:?} {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

#[test]
fn case_19_resolvers_take_the_agents_answers() {
    let [v4, other_v4, v6, _] = SERVERS;
    let [direct_v4, direct_v6] = OTHERS;
    let cases = [
        ("one server", vec![v4], "", AGENT),
        ("one IPv6 server", vec![v6], "", AGENT),
        ("two servers", vec![v4, other_v4], "", AGENT),
        ("servers of both families", vec![v6, v4], "", AGENT),
        ("TCP", vec![v4], "options use-vc\n", AGENT),
        ("TCP over IPv6", vec![v6], "options use-vc\n", AGENT),
        ("another server", vec![direct_v4], "", UPSTREAM),
        ("another IPv6 server", vec![direct_v6], "", UPSTREAM),
    ];
    for mode in [Mode::Iptables, Mode::Accelerator, Mode::Both] {
        let lab = Lab::new(mode, Capture::Resolvers);
        for (name, servers, options, identity) in &cases {
            let lines = servers
                .iter()
                .map(|server| format!("nameserver {server}\n"));
            let conf = lines.chain([(*options).to_owned()]).collect::<String>();
            for (resolver, command) in resolvers() {
                let found = resolve(&lab, &command, &conf);
                assert_eq!(found, Ok(*identity), "{mode:?}: {resolver}, {name}");
            }
        }
    }
}
