//! How clients reach the server and what they can prove: TLS, client certificates, Unix peers, over real sockets.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "transport/support.rs"]
mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use rustls::version::{TLS12, TLS13};
use support::{Authority, Client, Leaf, Running, names, refusal};
use tempfile::TempDir;

const CART: &str = "spiffe://example.org/ns/shop/sa/cart";
const OTHER: &str = "spiffe://example.org/ns/shop/sa/other";

// One row of the table: who knocks, and what happens.
struct Case {
    name: &'static str,
    leaf: Option<Leaf>,
    version: &'static rustls::SupportedProtocolVersion,
    alpn: &'static [u8],
    node: &'static str,
    // Names served, or what the log of the refusal says.
    outcome: Result<&'static [&'static str], &'static str>,
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "it is a table")]
async fn each_client_is_served_or_refused_by_what_it_proves() {
    let (ca, foreign) = (Authority::new(), Authority::new());
    let running = Running::start_tls(&ca, Some(&ca)).await;
    let case = |name, leaf, node, outcome| Case {
        name,
        leaf,
        version: &TLS13,
        alpn: b"h2",
        node,
        outcome,
    };
    let cases = [
        case(
            "the right one",
            Some(ca.leaf(&[CART])),
            "cart",
            Ok(&["cart", "everybody", "shop"]),
        ),
        case(
            "another node id is no obstacle",
            Some(ca.leaf(&[CART])),
            "x",
            Ok(&["cart", "everybody", "shop"]),
        ),
        case(
            "a stolen node id",
            Some(ca.leaf(&[OTHER])),
            "cart",
            Ok(&["everybody", "shop"]),
        ),
        case(
            "another trust domain",
            Some(ca.leaf(&["spiffe://example.com/ns/shop/sa/cart"])),
            "cart",
            Ok(&["everybody"]),
        ),
        case(
            "no SPIFFE ID",
            Some(ca.leaf(&[])),
            "cart",
            Ok(&["everybody"]),
        ),
        case(
            "a URI of another kind",
            Some(ca.leaf(&["https://example.org/ns/shop/sa/cart"])),
            "cart",
            Ok(&["everybody"]),
        ),
        case(
            "two SPIFFE IDs",
            Some(ca.leaf(&[CART, OTHER])),
            "cart",
            Err("has a SPIFFE ID and 1 more URIs; it must have one"),
        ),
        case(
            "a malformed SPIFFE ID",
            Some(ca.leaf(&["spiffe://Example.org/ns/shop/sa/cart"])),
            "cart",
            Err("is no SPIFFE ID: the trust domain may only hold"),
        ),
        case(
            "no certificate",
            None,
            "cart",
            Err("peer sent no certificates"),
        ),
        case(
            "a CA that is not ours",
            Some(foreign.leaf(&[CART])),
            "cart",
            Err("invalid peer certificate: BadSignature"),
        ),
        case(
            "expired",
            Some(ca.leaf_until(&[CART], 2001)),
            "cart",
            Err("invalid peer certificate: certificate expired"),
        ),
        case(
            "a server's certificate",
            Some(ca.server()),
            "cart",
            Err("invalid peer certificate:"),
        ),
        Case {
            version: &TLS12,
            ..case(
                "TLS 1.2",
                Some(ca.leaf(&[CART])),
                "cart",
                Err("peer is incompatible"),
            )
        },
        Case {
            alpn: b"http/1.1",
            ..case(
                "HTTP/1.1",
                Some(ca.leaf(&[CART])),
                "cart",
                Err("peer doesn't support any known protocol"),
            )
        },
    ];
    for Case {
        name,
        leaf,
        version,
        alpn,
        node,
        outcome,
    } in cases
    {
        let mut client = Client::tls(&running, &ca, leaf.as_ref(), version, alpn, node).await;
        match (client.next().await, outcome) {
            (Ok(response), Ok(wanted)) => assert_eq!(names(&response), wanted, "{name}"),
            (Err(_), Err(reason)) => running.wait_for_log(name, reason).await,
            (found, wanted) => panic!("{name}: {found:?}, not {wanted:?}"),
        }
    }
    let mut plain = Client::plain(&running, "cart").await;
    assert!(plain.next().await.is_err(), "plaintext to the TLS listener");
    for secret in [
        ca.key_line.clone(),
        "PRIVATE KEY".to_owned(),
        "SECRET-OF-CART".to_owned(),
    ] {
        assert!(!running.log().contains(&secret), "the log has a secret");
    }
}

#[tokio::test]
async fn certificates_are_replaced_under_open_streams() {
    let (old, new) = (Authority::new(), Authority::new());
    let mut running = Running::start_tls(&old, Some(&old)).await;
    let leaf = old.leaf(&[CART]);
    let mut stream = Client::tls(&running, &old, Some(&leaf), &TLS13, b"h2", "cart").await;
    let first = stream.next().await.unwrap();
    stream.ack(&first).await;

    // As Kubernetes does it: all files at once, by the link to their directory.
    running.swap_tls(&new, Some(&new));
    running
        .wait_for_log("taken", "certificates were read again")
        .await;
    let leaf = new.leaf(&[CART]);
    let mut fresh = Client::tls(&running, &new, Some(&leaf), &TLS13, b"h2", "cart").await;
    assert_eq!(
        names(&fresh.next().await.unwrap()),
        ["cart", "everybody", "shop"]
    );
    let leaf = old.leaf(&[CART]);
    let mut stale = Client::tls(&running, &new, Some(&leaf), &TLS13, b"h2", "cart").await;
    assert!(stale.next().await.is_err(), "the old CA counts no more");

    running.change("2s");
    let pushed = stream.next().await.expect("the open stream goes on");
    assert_eq!(names(&pushed), ["cart", "everybody", "shop"]);
}

#[tokio::test]
async fn bad_files_leave_the_last_good_certificate_in_force() {
    let ca = Authority::new();
    let mut running = Running::start_tls(&ca, None).await;
    for (file, content, reason) in [
        (
            "tls.crt",
            String::new(),
            "holds no certificate in PEM (-----BEGIN CERTIFICATE-----)",
        ),
        (
            "tls.crt",
            Authority::new().server().cert_pem,
            "is not the key of the certificate in",
        ),
        (
            "tls.key",
            "-----BEGIN PRIVATE KEY-----\nU0VDUkVU".to_owned(),
            "holds no private key in PEM",
        ),
    ] {
        running.swap_file(file, &content);
        running.wait_for_log(file, reason).await;
        let mut client = Client::tls(&running, &ca, None, &TLS13, b"h2", "x").await;
        assert_eq!(
            names(&client.next().await.unwrap()),
            ["everybody"],
            "{reason}"
        );
    }
    assert!(!running.log().contains("U0VDUkVU"));
    running.remove_file("tls.key");
    running
        .wait_for_log("removed", "of --tls-key; it must exist and be readable")
        .await;
    running.swap_tls(&ca, None);
    running
        .wait_for_log("mended", "certificates were read again")
        .await;
}

#[tokio::test]
async fn what_is_not_safe_or_not_there_is_refused_at_start() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("file"), "x").unwrap();
    let taken = UnixListener::bind(path("taken")).unwrap();
    let cases = [
        (
            vec!["--xds-listen".to_owned(), "0.0.0.0:0".to_owned()],
            "will not serve xDS in plaintext on 0.0.0.0:0, where other machines can read secrets: give --tls-cert and --tls-key, \
             or a loopback address with --xds-listen; or accept it with --insecure".to_owned(),
        ),
        (
            vec!["--tls-cert".to_owned(), path("none"), "--tls-key".to_owned(), path("none")],
            format!("cannot read {} of --tls-cert; it must exist and be readable", path("none")),
        ),
        (
            vec!["--tls-cert".to_owned(), path("file"), "--tls-key".to_owned(), path("file")],
            format!("{} of --tls-cert holds no certificate in PEM (-----BEGIN CERTIFICATE-----)", path("file")),
        ),
        (
            vec!["--xds-socket".to_owned(), path("file")],
            format!("{} exists and is not a socket; remove it, or choose another path with --xds-socket", path("file")),
        ),
        (
            vec!["--xds-socket".to_owned(), path("taken")],
            format!("another process serves {}; stop it, or choose another path with --xds-socket", path("taken")),
        ),
    ];
    for (args, wanted) in cases {
        let found = refusal(&args);
        assert!(
            found.starts_with(&format!("isthmus-xds: {wanted}")),
            "{args:?}: {found}"
        );
    }
    drop(taken);
    let running = Running::start(&["--xds-listen", "0.0.0.0:0", "--insecure"], None).await;
    let mut client = Client::plain(&running, "cart").await;
    assert_eq!(names(&client.next().await.unwrap()), ["everybody"]);
}

#[tokio::test]
async fn a_unix_peer_is_its_user_and_a_stale_socket_is_replaced() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("xds.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a stale socket");
    let uid = fs::metadata(dir.path()).unwrap().uid();
    let socket = path.to_str().unwrap();
    let running = Running::start(&["--xds-socket", socket], Some(uid)).await;
    let made = fs::metadata(&path).unwrap();
    assert!(made.file_type().is_socket());
    assert_eq!(made.permissions().mode() & 0o777, 0o660);

    let mut client = Client::unix(&path, "cart").await;
    assert_eq!(names(&client.next().await.unwrap()), ["everybody", "mine"]);
    let dump = running.get("/config_dump").await;
    let pid = std::process::id();
    assert!(
        dump.contains(&format!("\"peer\":\"unix:uid={uid},gid=")),
        "{dump}"
    );
    assert!(dump.contains(&format!(",pid={pid}\"")), "{dump}");
    assert!(
        dump.contains(&format!("\"identity\":\"uid:{uid}\"")),
        "{dump}"
    );
    let mut other = Client::plain(&running, "cart").await;
    assert_eq!(
        names(&other.next().await.unwrap()),
        ["everybody"],
        "TCP proves no user"
    );

    drop((client, other));
    running.stop().await;
    assert!(!path.exists(), "the socket goes with the server");
    // A link is not followed to what it names.
    symlink(dir.path(), &path).unwrap();
    let args = ["--xds-socket".to_owned(), path.to_str().unwrap().to_owned()];
    assert!(refusal(&args).contains("is not a socket"));
}
