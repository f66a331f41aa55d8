//! Datagrams as the kernel makes them, cut and spoilt ones.

use super::*;

const ENTRY: i32 = 24;

fn message(kind: i32, flags: i32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + body.len()).expect("few");
    let mut bytes = length.to_ne_bytes().to_vec();
    for number in [kind, flags] {
        let number = u16::try_from(number).expect("a small number");
        bytes.extend(number.to_ne_bytes());
    }
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

fn read(datagram: &[u8]) -> io::Result<(Progress, Vec<u8>)> {
    let mut taken = Vec::new();
    let progress = Dump::default().handle(datagram, &mut |kind, body| {
        assert_eq!(i32::from(kind), ENTRY);
        taken.extend(body);
        Ok(Appetite::More)
    })?;
    Ok((progress, taken))
}

#[test]
fn a_dump_is_read_to_its_end() {
    let entries = [message(ENTRY, 0, &[1, 2, 3, 4]), message(ENTRY, 0, &[5, 6])].concat();
    let outcome = read(&entries).expect("it is whole");
    assert_eq!(outcome, (Progress::More, vec![1, 2, 3, 4, 5, 6]));
    let done = [message(NLMSG_DONE, 0, &[0; 4]), message(ENTRY, 0, &[7])].concat();
    assert_eq!(read(&done).expect("it is whole"), (Progress::Done, vec![]));
}

#[test]
fn a_dump_that_is_refused_interrupted_or_cut_is_none() {
    let errno = (-1_i32).to_ne_bytes();
    let whole = message(ENTRY, 0, &[0; 12]);
    let cases = [
        (
            "refused",
            message(NLMSG_ERROR, 0, &errno),
            io::ErrorKind::PermissionDenied,
        ),
        (
            "interrupted",
            message(NLMSG_DONE, NLM_F_DUMP_INTR, &[0; 4]),
            io::ErrorKind::Interrupted,
        ),
        (
            "cut",
            whole[..whole.len() - 4].to_vec(),
            io::ErrorKind::InvalidData,
        ),
    ];
    for (name, datagram, kind) in cases {
        let error = read(&datagram).expect_err(name);
        assert_eq!(error.kind(), kind, "{name}: {error}");
    }
}

#[test]
fn what_does_not_end_is_not_read_for_ever() {
    let entry = message(ENTRY, 0, &[0; 12]);
    let mut dump = Dump::default();
    let mut handle = |_| {
        dump.handle(&entry, &mut |_, _| Ok(Appetite::More))
            .map(drop)
    };
    let error = (0..=MAX_MESSAGES).try_for_each(&mut handle);
    let error = error.expect_err("there is an end");
    let text = "the kernel's answer has more than 20000 entries";
    assert_eq!(error.to_string(), text);
}

#[test]
fn a_request_says_its_length_and_aligns_its_attributes() {
    let request = Request::add(32, &[9; 12])
        .with(21, &[173])
        .with(15, &[1, 0, 0, 0]);
    let bytes = request.as_bytes();
    assert_eq!(u32_at(bytes, 0), u32::try_from(bytes.len()).ok());
    assert_eq!(u16_at(bytes, 4), Some(32));
    let (name, value, rest) = attribute(&bytes[28..]).expect("an attribute");
    assert_eq!((name, value), (21, &[173][..]));
    let (name, value, rest) = attribute(rest).expect("another");
    assert_eq!((name, value, rest), (15, &[1, 0, 0, 0][..], &[][..]));
}
