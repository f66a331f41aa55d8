//! A pod that calls its own service, of which it is the only endpoint, through a real sidecar with mutual TLS.
//!
//! ```text
//!   app ──198.19.0.10:80──▶ :15001 ──mTLS to the pod's own address:8080──▶ :15006 ──from 127.0.0.6──▶ app :8080
//!                              └─────────────── one Envoy ───────────────────┘
//! ```
//!
//! Rows O2 and O3 of `redirection_table.rs`, whose case 3 does the same with threads for the sidecar.

use std::collections::BTreeMap;
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isthmus_accel_abi::Hop;
use isthmus_integration_tests::accelerator::Accelerator;
use isthmus_integration_tests::control_plane::{ControlPlane, ControlPlanePlan};
use isthmus_integration_tests::envoy::{Protocol, RealEnvoy};
use isthmus_integration_tests::http::HttpConnection;
use isthmus_integration_tests::iptables::{self, Capture, INBOUND_PORT};
use isthmus_integration_tests::lab::{NODE_ADDRESS, NetnsLab, Pod, SERVICE_ADDRESS};
use isthmus_integration_tests::mesh::{self, FIRST_REVISION, SERVICE_PORT};
use isthmus_integration_tests::nginx::{self, APPLICATION_PORT, SOURCE_PATH};
use isthmus_integration_tests::process::Process;
use isthmus_integration_tests::sidecar::{
    INBOUND_LISTENER, INBOUND_SOURCE, Identity, OUTBOUND_LISTENER, TRACE_HEADER,
    mutual_tls_document, route_document,
};
use isthmus_integration_tests::wait;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

/// The pod, and its service account.
const OWN: &str = "own";

/// Who the sidecar is, to itself.
const OWN_URI: &str = "spiffe://cluster.local/ns/default/sa/own";

/// Nothing here takes a second; a busy machine may.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who redirects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mode {
    AcceleratorAlone,
    IptablesAlone,
    Both,
}

#[test]
fn case_03_a_call_to_the_own_service_passes_a_real_sidecar_twice_with_mutual_tls() -> Result<()> {
    for mode in [Mode::AcceleratorAlone, Mode::IptablesAlone, Mode::Both] {
        check(mode).with_context(|| format!("{mode:?}"))?;
    }
    Ok(())
}

fn check(mode: Mode) -> Result<()> {
    let service = OwnService::start(mode)?;
    call_passes_each_listener_once(&service)?;
    call_was_redirected_by_whom_it_should(&service, mode)?;
    plain_text_is_refused(&service)
}

fn call_passes_each_listener_once(service: &OwnService) -> Result<()> {
    let pod = service.pod()?;
    let trace = format!("{TRACE_HEADER}: {OWN}\r\n");
    let response = mesh::request_service(pod, SOURCE_PATH, &trace)?;
    let seen = (response.status, response.text());
    let expected = (200, format!("{INBOUND_SOURCE}\n"));
    ensure!(
        seen == expected,
        "the application is asked by its sidecar: {seen:?}"
    );

    let sidecar = &service.sidecar;
    let log = wait::until("a log line of each listener", PATIENCE, || {
        let log = sidecar.access_log(OWN)?;
        ensure!(log.len() >= 2, "there are {log:?}");
        Ok(log)
    })?;
    let mut passed: Vec<_> = log
        .iter()
        .map(|line| ["listener", "local", "peer"].map(|name| line[name].as_str()))
        .collect();
    passed.sort_unstable();
    let (dialled, endpoint) = (
        SocketAddrV4::new(SERVICE_ADDRESS, SERVICE_PORT).to_string(),
        SocketAddrV4::new(pod.address, APPLICATION_PORT).to_string(),
    );
    let expected = [
        [Some(INBOUND_LISTENER), Some(&endpoint), Some(OWN_URI)],
        // The application has no certificate.
        [Some(OUTBOUND_LISTENER), Some(&dialled), None],
    ];
    ensure!(
        passed == expected,
        "listener, original destination and identity: {passed:?}"
    );

    // Lines are written when a request has ended, these count as soon as one begins: no loop hides.
    for listener in [OUTBOUND_LISTENER, INBOUND_LISTENER] {
        for what in ["downstream_cx_total", "downstream_rq_total"] {
            let count = sidecar.stat(&format!("http.{listener}.{what}"))?;
            ensure!(count == 1, "{listener}: {what} is {count}");
        }
    }
    Ok(())
}

fn call_was_redirected_by_whom_it_should(service: &OwnService, mode: Mode) -> Result<()> {
    let netns = &service.pod()?.netns;
    let by_rules = (
        iptables::outbound_redirects(netns)?,
        iptables::inbound_redirects(netns)?,
    );
    let expected = match mode {
        Mode::AcceleratorAlone | Mode::Both => (0, 0),
        Mode::IptablesAlone => (1, 1),
    };
    ensure!(by_rules == expected, "redirected by rules: {by_rules:?}");
    if mode == Mode::AcceleratorAlone {
        let rules = iptables::counts(netns)?;
        ensure!(rules.is_empty(), "the pod has {rules:?}");
    }

    let Some(accelerator) = &service.accelerator else {
        return Ok(());
    };
    let hops = accelerator.status()?.hops.into_iter();
    let hops: BTreeMap<String, u64> = hops.map(|row| (row.hop, row.connections)).collect();
    let expected = Hop::ALL.map(|hop| (hop.name().to_owned(), 1));
    ensure!(
        hops == BTreeMap::from(expected),
        "connections by hop: {hops:?}"
    );
    Ok(())
}

/// Nobody gets in past TLS: what came to the application came with the identity above.
fn plain_text_is_refused(service: &OwnService) -> Result<()> {
    let address = service.pod()?.address;
    let stream = service
        .lab
        .node()
        .enter(|| TcpStream::connect((address, APPLICATION_PORT)))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    let answer = HttpConnection::new(stream).request("GET", OWN, "/", "connection: close\r\n");
    ensure!(answer.is_err(), "the application is reached: {answer:?}");
    let statistic = format!("listener.0.0.0.0_{INBOUND_PORT}.ssl.connection_error");
    let refused = service.sidecar.stat(&statistic)?;
    ensure!(
        refused == 1,
        "{statistic} is {refused} after {answer:?}: another one refuses"
    );
    Ok(())
}

/// A pod that is the only endpoint of its own service.
struct OwnService {
    // In the order in which they must be dropped.
    sidecar: RealEnvoy,
    accelerator: Option<Accelerator>,
    _application: Process,
    _control_plane: ControlPlane,
    lab: NetnsLab,
}

impl OwnService {
    fn start(mode: Mode) -> Result<Self> {
        let mut lab = NetnsLab::create()?;
        let rules = Capture::default();
        lab.add_pod(OWN, (mode != Mode::AcceleratorAlone).then_some(&rules))?;
        let pod = lab.pod(OWN)?;
        let application = nginx::start(pod)?;

        let plan = ControlPlanePlan::on(NODE_ADDRESS, Some(lab.node().path()), lab.dir());
        let mut control_plane = ControlPlane::prepare(plan)?;
        let mesh = mutual_tls_document(Protocol::Delta, &[pod.address], &identity(OWN_URI)?);
        control_plane.publish("mesh.yaml", &mesh)?;
        control_plane.publish("routes.yaml", &route_document(FIRST_REVISION))?;
        control_plane.start()?;

        let accelerator = match mode {
            Mode::AcceleratorAlone | Mode::Both => {
                let mut accelerator = Accelerator::prepare(lab.dir())?;
                accelerator.write_pods(&[pod])?;
                accelerator.start(1)?;
                Some(accelerator)
            }
            Mode::IptablesAlone => None,
        };
        Ok(Self {
            sidecar: mesh::start_sidecar(pod, Protocol::Delta)?,
            accelerator,
            _application: application,
            _control_plane: control_plane,
            lab,
        })
    }

    fn pod(&self) -> Result<&Pod> {
        self.lab.pod(OWN)
    }
}

/// An identity, by an authority that nobody else has.
fn identity(uri: &str) -> Result<Identity> {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate()?;
    let authority_pem = authority.self_signed(&authority_key)?.pem();

    let mut workload = CertificateParams::default();
    workload.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    // Else it goes by the name of the authority.
    workload.distinguished_name.push(DnType::CommonName, OWN);
    let key = KeyPair::generate()?;
    let certificate = workload.signed_by(&key, &Issuer::new(authority, authority_key))?;
    Ok(Identity {
        authority: authority_pem,
        certificate: certificate.pem(),
        key: key.serialize_pem(),
        uri: uri.to_owned(),
    })
}
