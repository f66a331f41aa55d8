//! What a pod's readers leave unread is bounded for all of them together.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
};

use isthmus_accel_abi::{
    Hop, MAX_PARKED_BYTES_PER_POD, MAX_PARKED_MESSAGES, MAX_PARKED_MESSAGES_PER_POD, ParkedSum,
    PassReason,
};
use isthmus_accel_datapath::Datapath as _;

use crate::fixture::{APP, Fixture, PROXY, Pod, VIP, wait_until};

/// Less than a default receive buffer.
const PARKED_BYTES: usize = 96 << 10;

fn proxy(pod: &Pod) -> TcpListener {
    pod.listen(PROXY, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_001))
}

fn connect(pod: &Pod, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let app = pod.connect(APP, VIP).expect("the proxy listens");
    app.set_nodelay(true).expect("TCP");
    let (proxy, _) = listener.accept().expect("a connection");
    proxy.set_nodelay(true).expect("TCP");
    (app, proxy)
}

fn parked(fixture: &Fixture, pod: &Pod) -> ParkedSum {
    let rows = fixture.datapath.parked().expect("the map can be read");
    rows.iter()
        .find(|row| row.netns_cookie == pod.cookie)
        .map(|row| row.sum)
        .unwrap_or_default()
}

#[test]
fn readers_that_stall_share_the_bytes_of_their_pod() {
    let (pod, other) = (Pod::alone([198, 18, 0, 1]), Pod::alone([198, 18, 0, 2]));
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    fixture.add_pod(&other);
    let listener = proxy(&pod);
    let budget = usize::try_from(MAX_PARKED_BYTES_PER_POD).expect("it fits memory");
    let mut pairs: Vec<_> = (0..2 * budget / PARKED_BYTES)
        .map(|_| connect(&pod, &listener))
        .collect();
    for (app, _) in &mut pairs {
        for chunk in vec![0x5a; PARKED_BYTES].chunks(8 << 10) {
            app.write_all(chunk).expect("TCP has room for the rest");
        }
    }

    let sum = parked(&fixture, &pod);
    let stats = fixture.hop(&pod, Hop::APP_TO_PROXY);
    assert!(sum.bytes <= MAX_PARKED_BYTES_PER_POD, "{sum:?}");
    assert!(sum.bytes > MAX_PARKED_BYTES_PER_POD * 9 / 10, "{sum:?}");
    assert_eq!(
        stats.bytes_redirected, sum.bytes,
        "nothing is read: {stats:?}"
    );
    assert!(
        stats.passes[PassReason::PodBudgetSpent.index()] > 0,
        "{stats:?}"
    );
    // Another pod has its own.
    let (mut app, _proxy) = connect(&other, &proxy(&other));
    app.write_all(b"x").expect("it is connected");
    assert_eq!(fixture.hop(&other, Hop::APP_TO_PROXY).bytes_redirected, 1);

    for (_, proxy) in &mut pairs {
        let mut bytes = vec![0; PARKED_BYTES];
        proxy.read_exact(&mut bytes).expect("nothing is lost");
        assert!(bytes.iter().all(|byte| *byte == 0x5a));
    }
    drop(pairs);
    wait_until("everything is given back", || {
        parked(&fixture, &pod) == ParkedSum::default()
    });
}

#[test]
fn readers_that_stall_share_the_messages_of_their_pod() {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let listener = proxy(&pod);
    let readers = MAX_PARKED_MESSAGES_PER_POD / u64::from(MAX_PARKED_MESSAGES) + 1;
    let pairs: Vec<_> = (0..readers).map(|_| connect(&pod, &listener)).collect();
    for (mut app, _) in pairs.iter().map(|(app, proxy)| (app, proxy)) {
        for _ in 0..MAX_PARKED_MESSAGES {
            app.write_all(b"x").expect("TCP has room for the rest");
        }
    }
    let sum = parked(&fixture, &pod);
    assert_eq!(sum.messages, MAX_PARKED_MESSAGES_PER_POD);
    let stats = fixture.hop(&pod, Hop::APP_TO_PROXY);
    assert_eq!(
        stats.passes[PassReason::PodBudgetSpent.index()],
        1,
        "{stats:?}"
    );
}

#[test]
fn an_answer_gives_back_what_the_request_took() {
    let pod = Pod::alone([198, 18, 0, 1]);
    let mut fixture = Fixture::load();
    fixture.add_pod(&pod);
    let listener = proxy(&pod);
    let (mut app, mut proxy) = connect(&pod, &listener);
    app.write_all(b"request").expect("it is connected");
    let taken = ParkedSum {
        bytes: 7,
        messages: 1,
    };
    assert_eq!(parked(&fixture, &pod), taken);
    let mut request = [0; 7];
    proxy.read_exact(&mut request).expect("it arrives");
    assert_eq!(parked(&fixture, &pod), taken, "nobody has looked");
    proxy.write_all(b"answer").expect("it is connected");
    assert_eq!(parked(&fixture, &pod), ParkedSum::default());
}
