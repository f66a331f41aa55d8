//! How clients reach the server and what they can prove: TLS, client certificates, Unix peers, over real sockets; and how
//! a server that stops lets them go.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "transport/drain.rs"]
mod drain;
#[path = "transport/support.rs"]
mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use isthmus_xds_core::type_rules::SECRET;
use rustls::version::TLS12;
use support::{Authority, Client, Leaf, Running, TlsPlan, names, refusal};
use tempfile::TempDir;

const CART: &str = "spiffe://example.org/ns/shop/sa/cart";
const OTHER: &str = "spiffe://example.org/ns/shop/sa/other";

// One row of the table: who knocks and how, and what becomes of it.
struct Case {
    name: &'static str,
    knock: Knock,
    outcome: Outcome,
}

enum Knock {
    // With a certificate and a node id.
    With(Leaf, &'static str),
    WithoutCertificate,
    Plaintext,
    Version(Leaf, &'static rustls::SupportedProtocolVersion),
    Protocol(Leaf, &'static [u8]),
    // Expects another name in the server's certificate.
    Expecting(Leaf, &'static str),
    // Trusts another CA than the server's.
    Trusting(Leaf, Box<Authority>),
}

enum Outcome {
    // Names of the documents that are served.
    Served(&'static [&'static str]),
    // Label of the count, and what the log says.
    Refused(&'static str, &'static str),
}

#[allow(clippy::too_many_lines, reason = "it is a table")]
fn cases(ca: &Authority) -> Vec<Case> {
    use Knock::{Expecting, Plaintext, Protocol, Trusting, Version, With, WithoutCertificate};
    use Outcome::{Refused, Served};
    let foreign = Authority::new();
    let case = |name, knock, outcome| Case {
        name,
        knock,
        outcome,
    };
    let uri = |uri: &str| With(ca.leaf(&[uri]), "cart");
    vec![
        case(
            "the right one",
            uri(CART),
            Served(&["cart", "everybody", "shop"]),
        ),
        case(
            "another node id is no obstacle",
            With(ca.leaf(&[CART]), "x"),
            Served(&["cart", "everybody", "shop"]),
        ),
        case(
            "a stolen node id",
            uri(OTHER),
            Served(&["everybody", "shop"]),
        ),
        case(
            "another trust domain",
            uri("spiffe://example.com/ns/shop/sa/cart"),
            Served(&["everybody"]),
        ),
        case(
            "an ID that begins like another",
            uri("spiffe://example.org/ns/shop/sa/cart2"),
            Served(&["everybody", "shop"]),
        ),
        case(
            "an ID that goes on after another",
            uri("spiffe://example.org/ns/shop/sa/cart/x"),
            Served(&["everybody", "shop"]),
        ),
        case(
            "a namespace that begins like another",
            uri("spiffe://example.org/ns/shop-evil/sa/cart"),
            Served(&["everybody"]),
        ),
        case(
            "the pattern itself",
            uri("spiffe://example.org/ns/shop"),
            Served(&["everybody"]),
        ),
        case(
            "no SPIFFE ID",
            With(ca.leaf(&[]), "cart"),
            Served(&["everybody"]),
        ),
        case(
            "a URI of another kind",
            uri("https://example.org/ns/shop/sa/cart"),
            Served(&["everybody"]),
        ),
        case(
            "two SPIFFE IDs",
            With(ca.leaf(&[CART, OTHER]), "cart"),
            Refused(
                "spiffe_id",
                "has a SPIFFE ID and 1 more URIs; it must have one",
            ),
        ),
        case(
            "a malformed SPIFFE ID",
            uri("spiffe://Example.org/ns/shop/sa/cart"),
            Refused(
                "spiffe_id",
                "is no SPIFFE ID: the trust domain may only hold",
            ),
        ),
        case(
            "no certificate",
            WithoutCertificate,
            Refused("no_certificate", "peer sent no certificates"),
        ),
        case(
            "a foreign CA",
            With(foreign.leaf(&[CART]), "cart"),
            Refused("unknown_ca", "invalid peer certificate: BadSignature"),
        ),
        case(
            "self-signed",
            With(Leaf::self_signed(CART), "cart"),
            Refused("unknown_ca", "invalid peer certificate: UnknownIssuer"),
        ),
        case(
            "expired",
            With(ca.leaf_between(&[CART], 2000, 2001), "cart"),
            Refused("expired", "invalid peer certificate: certificate expired"),
        ),
        case(
            "not yet valid",
            With(ca.leaf_between(&[CART], 3000, 4000), "cart"),
            Refused(
                "not_yet_valid",
                "invalid peer certificate: certificate not valid yet",
            ),
        ),
        case(
            "a server's certificate",
            With(ca.server(), "cart"),
            Refused("purpose", "invalid peer certificate:"),
        ),
        case(
            "TLS 1.2",
            Version(ca.leaf(&[CART]), &TLS12),
            Refused("tls_version", "peer is incompatible"),
        ),
        case(
            "HTTP/1.1",
            Protocol(ca.leaf(&[CART]), b"http/1.1"),
            Refused("not_http2", "peer doesn't support any known protocol"),
        ),
        case(
            "plaintext",
            Plaintext,
            Refused("not_tls", "received corrupt message"),
        ),
        case(
            "the wrong host name",
            Expecting(ca.leaf(&[CART]), "other.example"),
            Refused("by_client", "received fatal alert"),
        ),
        case(
            "a client of another CA",
            Trusting(ca.leaf(&[CART]), Box::new(foreign)),
            Refused("by_client", "received fatal alert"),
        ),
    ]
}

#[tokio::test]
async fn each_client_is_served_or_refused_by_what_it_proves() {
    let ca = Authority::new();
    let running = Running::start_tls(&ca, Some(&ca)).await;
    for Case {
        name,
        knock,
        outcome,
    } in cases(&ca)
    {
        let before = running.log().len();
        let plan = TlsPlan::new(&ca);
        let mut client = match &knock {
            Knock::With(leaf, node) => Client::tls(&running, &plan.with(leaf).node(node)).await,
            Knock::WithoutCertificate => Client::tls(&running, &plan).await,
            Knock::Plaintext => Client::plain(&running, "cart").await,
            Knock::Version(leaf, version) => {
                Client::tls(&running, &plan.with(leaf).version(version)).await
            }
            Knock::Protocol(leaf, alpn) => Client::tls(&running, &plan.with(leaf).alpn(alpn)).await,
            Knock::Expecting(leaf, host) => {
                Client::tls(&running, &plan.with(leaf).host(host)).await
            }
            Knock::Trusting(leaf, other) => {
                Client::tls(&running, &TlsPlan::new(other).with(leaf)).await
            }
        };
        match (client.next().await, outcome) {
            (Ok(response), Outcome::Served(wanted)) => {
                assert_eq!(names(&response), wanted, "{name}");
            }
            (Err(_), Outcome::Refused(kind, reason)) => {
                let line = running.wait_for_refusal(name, before).await;
                let is_said = line.contains(&format!("kind=\"{kind}\"")) && line.contains(reason);
                assert!(is_said, "{name}: {line}");
                let counted = format!("connections_refused_total{{reason=\"{kind}\"}}");
                assert!(running.get("/metrics").await.contains(&counted), "{name}");
            }
            (found, Outcome::Served(wanted)) => panic!("{name}: {found:?}, not {wanted:?}"),
            (found, Outcome::Refused(..)) => panic!("{name}: {found:?}, not refused"),
        }
    }
    expect_no_secret(&running, &ca);
}

#[tokio::test]
async fn a_stolen_node_id_gets_no_secret_of_its_owner() {
    let ca = Authority::new();
    let running = Running::start_tls(&ca, Some(&ca)).await;
    for (identity, wanted) in [(CART, (vec!["cart"], 0)), (OTHER, (vec![], 1))] {
        let leaf = ca.leaf(&[identity]);
        let mut client = Client::tls(&running, &TlsPlan::new(&ca).with(&leaf)).await;
        client.next().await.unwrap();
        client.ask(SECRET, &["cart"]).await;
        let secrets = client.next().await.unwrap();
        let found = (names(&secrets), secrets.removed_resources.len());
        assert_eq!(found, wanted, "{identity} asks for the secret of cart");
    }
    expect_no_secret(&running, &ca);
}

fn expect_no_secret(running: &Running, ca: &Authority) {
    let log = running.log();
    for secret in [&*ca.key_line, "PRIVATE KEY", "SECRET-OF-CART"] {
        assert!(!log.contains(secret), "the log has a secret");
    }
    assert!(!log.contains(&running.tls_key_line()), "the log has a key");
}

#[tokio::test]
async fn certificates_are_replaced_under_open_streams() {
    let (old, new) = (Authority::new(), Authority::new());
    let mut running = Running::start_tls(&old, Some(&old)).await;
    let leaf = old.leaf(&[CART]);
    let mut stream = Client::tls(&running, &TlsPlan::new(&old).with(&leaf)).await;
    let first = stream.next().await.unwrap();
    stream.ack(&first).await;

    // As Kubernetes does it: all files at once, by the link to their directory.
    running.swap_tls(&new, Some(&new));
    running
        .wait_for_log("taken", "certificates were read again")
        .await;
    let leaf = new.leaf(&[CART]);
    let mut fresh = Client::tls(&running, &TlsPlan::new(&new).with(&leaf)).await;
    assert_eq!(
        names(&fresh.next().await.unwrap()),
        ["cart", "everybody", "shop"]
    );
    let leaf = old.leaf(&[CART]);
    let mut stale = Client::tls(&running, &TlsPlan::new(&new).with(&leaf)).await;
    assert!(stale.next().await.is_err(), "the old CA counts no more");
    running
        .wait_for_log("stale", "invalid peer certificate: BadSignature")
        .await;

    running.change("2s");
    let pushed = stream.next().await.expect("the open stream goes on");
    assert_eq!(names(&pushed), ["cart", "everybody", "shop"]);
    expect_no_secret(&running, &old);
    expect_no_secret(&running, &new);
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
        let mut client = Client::tls(&running, &TlsPlan::new(&ca)).await;
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
