//! Golden bytes, and what holds for all.

use futures::{executor::block_on, io::Cursor};
use proptest::prelude::*;

use super::*;

fn candidate(kind: CandidateKind, transport: Transport, socket: &str) -> Candidate {
    Candidate::new(kind, transport, socket.parse().unwrap()).unwrap()
}

fn offer() -> Offer {
    Offer {
        round: 2,
        rtt: Some(Duration::from_millis(300)),
        candidates: vec![
            candidate(CandidateKind::Confirmed, Transport::Quic, "192.0.2.1:4001"),
            candidate(CandidateKind::Observed, Transport::Tcp, "[2001:db8::1]:1"),
            candidate(CandidateKind::Local, Transport::Quic, "10.0.0.7:4001"),
        ],
        nat_v4: Nat { mapping: Mapping::EndpointDependent, port_kept: Some(false), port_step: Some(-2) },
        nat_v6: Nat::default(),
        udp_blocked: true,
    }
}

fn written(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    block_on(write(&mut bytes, message)).unwrap();
    bytes
}

fn read_back(bytes: &[u8]) -> io::Result<Message> {
    block_on(read(&mut Cursor::new(bytes)))
}

fn read_dcutr(bytes: &[u8]) -> io::Result<dcutr::Message> {
    block_on(dcutr::read(&mut Cursor::new(bytes)))
}

#[track_caller]
fn golden(message: Message, expected: &str) {
    let expected: String = expected.split_whitespace().collect();
    let bytes = written(&message);
    assert_eq!(data_encoding::HEXLOWER.encode(&bytes), expected);
    assert_eq!(read_back(&bytes).unwrap(), message);
}

#[test]
fn golden_bytes() {
    golden(Message::Sync, "02 0803");
    golden(Message::Answer(Offer { round: 1, ..Offer::default() }), "04 0802 1001");
    golden(
        Message::Offer(offer()),
        "49 0801 1002 18ac02
         220d 0a04c0000201 10a11f 1801 2001
         2218 0a1020010db8000000000000000000000001 1001 1802 2002
         220d 0a040a000007 10a11f 1801 2003
         2a06 0803 1000 1803
         3801",
    );
}

#[test]
fn golden_bytes_of_dcutr() {
    let connect = dcutr::Message::Connect(vec![candidate(CandidateKind::Observed, Transport::Quic, "192.0.2.1:4001")]);
    for (message, expected) in [(connect, "0f086412 0b 04c0000201 91020fa1 cd03"), (dcutr::Message::Sync, "03 08ac02")]
    {
        let mut bytes = Vec::new();
        block_on(dcutr::write(&mut bytes, &message)).unwrap();
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes), expected.replace(' ', ""));
        assert_eq!(read_dcutr(&bytes).unwrap(), message);
    }
}

#[test]
fn addresses_become_candidates_and_back() {
    let of = |text: &str| Candidate::of(&text.parse().unwrap(), CandidateKind::Observed);
    for text in ["/ip4/192.0.2.1/udp/4001/quic-v1", "/ip6/2001:db8::1/tcp/4001"] {
        assert_eq!(of(text).unwrap().address().to_string(), text);
        let named = format!("{text}/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp");
        assert_eq!(of(&named), of(text));
        assert_eq!(of(&format!("{named}/p2p-circuit")), None);
    }
    for text in [
        "/ip4/192.0.2.1/udp/4001",
        "/ip4/192.0.2.1/tcp/4001/ws",
        "/ip4/0.0.0.0/tcp/1",
        "/ip4/0.1.2.3/tcp/1",
        "/ip4/224.0.0.1/tcp/1",
        "/ip4/255.255.255.255/tcp/1",
        "/ip4/192.0.2.1/tcp/0",
        "/ip6/fe80::1/tcp/1",
        "/ip6/ff02::1/tcp/1",
        "/ip6/::/tcp/1",
        "/ip6/::ffff:0.0.0.0/tcp/1",
        "/dns4/example.com/tcp/1",
    ] {
        assert_eq!(of(text), None, "{text}");
    }
    assert_eq!(of("/ip6/::ffff:192.0.2.1/tcp/1"), of("/ip4/192.0.2.1/tcp/1"));
}

#[test]
fn what_is_unknown_or_unusable_is_skipped() {
    // Field 15; a candidate of kind 9, one of transport 9, one with port 65536
    // and one with five bytes of IP.
    let bytes = "0802 7805
                 220c 0a04c0000201 1001 1801 2009
                 220c 0a04c0000201 1001 1809 2001
                 220e 0a04c0000201 10808004 1801 2001
                 220d 0a05c000020101 1001 1801 2001";
    let bytes: String = bytes.split_whitespace().collect();
    let body = data_encoding::HEXLOWER.decode(bytes.as_bytes()).unwrap();
    let framed = [&[body.len() as u8], body.as_slice()].concat();
    assert_eq!(read_back(&framed).unwrap(), Message::Answer(Offer::default()));
    let twice = Offer { candidates: [offer().candidates, offer().candidates].concat(), ..offer() };
    assert_eq!(read_back(&written(&Message::Offer(twice))).unwrap(), Message::Offer(offer()));
    assert!(read_back(&[2, 8, 9]).unwrap_err().to_string().contains("kind 9"));
    assert!(read_dcutr(&[2, 8, 9]).unwrap_err().to_string().contains("Some(9)"));
}

#[test]
fn sizes_are_limits() {
    let error = read_back(&[0xff, 0x7f]).unwrap_err();
    assert!(error.to_string().contains("16383 bytes; the limit is 4096"), "{error}");
    assert!(read_back(&[0x80, 0x80, 1]).is_err());
    let many = vec![candidate(CandidateKind::Local, Transport::Tcp, "10.0.0.1:1"); 100];
    let candidates = many.into_iter().zip(1..).map(|(known, port)| {
        let mut known = known;
        known.socket.set_port(port);
        known
    });
    let offer = Offer { candidates: candidates.collect(), ..Offer::default() };
    let Message::Offer(read) = read_back(&written(&Message::Offer(offer.clone()))).unwrap() else { panic!("another") };
    assert_eq!(read.candidates, offer.candidates[..MAX_CANDIDATES]);
    // One more than allowed, made by hand.
    let body = [vec![8, 2], [0x22, 0].repeat(MAX_CANDIDATES + 1)].concat();
    let framed = [&[body.len() as u8], body.as_slice()].concat();
    assert!(read_back(&framed).unwrap_err().to_string().contains("33 candidates"));
}

fn any_nat() -> impl Strategy<Value = Nat> {
    let mapping = prop_oneof![
        Just(Mapping::Unknown),
        Just(Mapping::None),
        Just(Mapping::EndpointIndependent),
        Just(Mapping::EndpointDependent)
    ];
    (mapping, any::<Option<bool>>(), any::<Option<i32>>()).prop_map(|(mapping, port_kept, port_step)| Nat {
        mapping,
        port_kept,
        port_step,
    })
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let kind = prop_oneof![Just(CandidateKind::Confirmed), Just(CandidateKind::Observed), Just(CandidateKind::Local)];
    let transport = prop_oneof![Just(Transport::Quic), Just(Transport::Tcp)];
    (kind, transport, any::<SocketAddr>())
        .prop_filter_map("usable", |(kind, transport, socket)| Candidate::new(kind, transport, socket))
}

proptest! {
    #[test]
    fn every_offer_comes_back(
        round in any::<u32>(),
        rtt in proptest::option::of(1_u64..10_000),
        candidates in prop::collection::vec(any_candidate(), 0..MAX_CANDIDATES),
        nat_v4 in any_nat(),
        nat_v6 in any_nat(),
        udp_blocked: bool,
    ) {
        let rtt = rtt.map(Duration::from_millis);
        let mut offer = Offer { round, rtt, candidates, nat_v4, nat_v6, udp_blocked };
        let mut seen = std::collections::HashSet::new();
        offer.candidates.retain(|known| seen.insert((known.transport, known.socket)));
        let bytes = written(&Message::Offer(offer.clone()));
        prop_assert!(bytes.len() <= MAX_PUNCH_BYTES + 2);
        prop_assert_eq!(read_back(&bytes).unwrap(), Message::Offer(offer));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for framed in [bytes.clone(), [&[(bytes.len() & 0x7f) as u8], bytes.as_slice()].concat()] {
            drop(read_dcutr(&framed));
            if let Ok(Message::Offer(offer) | Message::Answer(offer)) = read_back(&framed) {
                prop_assert!(offer.candidates.len() <= MAX_CANDIDATES);
            }
        }
    }
}
