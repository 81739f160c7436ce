//! Tickets: the short text by which one node invites another.
//!
//! ```text
//! version (1) │ key (32) │ secret (16) │ expiry │ up to 3 addresses │ CRC-32 (4)
//! ```
//!
//! in base32 without padding: letters and digits only, so that a double click
//! selects all of it and a QR code needs its dense alphabet only. The checksum
//! covers all before it and has this place in every version, so that damage
//! and age are told apart. It guards against slips, not against people: whoever
//! has a ticket has its secret anyway.

use data_encoding::BASE32_NOPAD;
use libp2p::{
    Multiaddr, PeerId,
    identity::{PublicKey, ed25519},
    multiaddr::Protocol,
};
use serde::{Deserialize, Serialize};

use crate::types::Secret;

/// Most bytes of a ticket before they become text.
pub const MAX_TICKET_BYTES: usize = 256;
/// Most characters of a ticket.
pub const MAX_TICKET_CHARS: usize = (MAX_TICKET_BYTES * 8).div_ceil(BITS_PER_CHAR);
/// Most addresses of a ticket.
pub const MAX_TICKET_ADDRESSES: usize = 3;

/// Of base32.
const BITS_PER_CHAR: usize = 5;
/// Most characters that are looked at: a ticket in a mail, broken into lines
/// and indented.
const MAX_TEXT_CHARS: usize = 4 * MAX_TICKET_CHARS;
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;

/// An invitation by one node to whoever holds this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The node that invites: the holder accepts no other.
    pub inviter: PeerId,
    /// Tells the inviter that its ticket came back.
    pub secret: Secret,
    /// Unix seconds; what counts is the inviter's own clock.
    pub expires: u64,
    /// Where the inviter may be, best first, without /p2p part; at most
    /// [`MAX_TICKET_ADDRESSES`], and no more than there is room for.
    pub addresses: Vec<Multiaddr>,
}

/// Why a text is no ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Nothing there.
    #[error("the ticket is empty; give the text that `p2p-node invite` printed")]
    Empty,
    /// More than any ticket has.
    #[error(
        "this has {0} characters, more than any ticket: give the text that `p2p-node invite` printed, nothing else"
    )]
    TooLong(usize),
    /// A character that no ticket has.
    #[error("{0:?} is in no ticket, which has letters and digits only: give the text that `p2p-node invite` printed")]
    Foreign(char),
    /// Cut off, or changed.
    #[error("the ticket is damaged: was it copied whole?")]
    Damaged,
    /// Of a later version.
    #[error("the ticket was made by a newer version of p2p-node (format {0}); update p2p-node on this machine")]
    Newer(u8),
    /// A node whose key is not of this product's kind.
    #[error("a ticket cannot name {0}, whose key is not Ed25519")]
    Key(PeerId),
    /// The system has no memory for it.
    #[error("the ticket cannot be written: {0}")]
    Write(String),
}

/// What is between the version and the checksum.
#[derive(Serialize, Deserialize)]
struct Body {
    key: [u8; 32],
    secret: Secret,
    expires: u64,
    addresses: Vec<Vec<u8>>,
}

impl Ticket {
    /// A ticket and its text. Addresses for which there is no room are left
    /// out, the last ones first.
    ///
    /// # Errors
    /// [`TicketError::Key`] or [`TicketError::Write`].
    pub fn write(
        inviter: PeerId,
        secret: Secret,
        expires: u64,
        mut addresses: Vec<Multiaddr>,
    ) -> Result<(Self, String), TicketError> {
        let key = key_of(&inviter).ok_or(TicketError::Key(inviter))?;
        addresses.truncate(MAX_TICKET_ADDRESSES);
        loop {
            let body = Body { key, secret, expires, addresses: addresses.iter().map(Multiaddr::to_vec).collect() };
            let bytes = with_checksum(&body)?;
            if bytes.len() <= MAX_TICKET_BYTES || addresses.pop().is_none() {
                return Ok((Self { inviter, secret, expires, addresses }, BASE32_NOPAD.encode(&bytes)));
            }
        }
    }

    /// Reads a ticket, in capitals or not, with or without blanks and line
    /// ends in it.
    ///
    /// # Errors
    /// What is wrong with it; see [`TicketError`].
    pub fn decode(text: &str) -> Result<Self, TicketError> {
        let plain = plain(text)?;
        let bytes = BASE32_NOPAD.decode(plain.as_bytes()).map_err(|_| TicketError::Damaged)?;
        let (content, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(TicketError::Damaged)?;
        if crc32fast::hash(content).to_be_bytes() != *checksum {
            return Err(TicketError::Damaged);
        }
        let (version, body) = content.split_first().ok_or(TicketError::Damaged)?;
        match *version {
            VERSION => decode_body(body).ok_or(TicketError::Damaged),
            0 => Err(TicketError::Damaged),
            newer => Err(TicketError::Newer(newer)),
        }
    }
}

fn plain(text: &str) -> Result<String, TicketError> {
    if text.len() > MAX_TEXT_CHARS {
        return Err(TicketError::TooLong(text.len()));
    }
    let mut plain = String::with_capacity(text.len());
    for character in text.chars().filter(|character| !character.is_whitespace()) {
        if !character.is_ascii_alphanumeric() {
            return Err(TicketError::Foreign(character));
        }
        plain.push(character.to_ascii_uppercase());
    }
    match plain.len() {
        0 => Err(TicketError::Empty),
        1..=MAX_TICKET_CHARS => Ok(plain),
        more => Err(TicketError::TooLong(more)),
    }
}

fn with_checksum(body: &Body) -> Result<Vec<u8>, TicketError> {
    let written = postcard::to_extend(body, vec![VERSION]);
    let mut bytes = written.map_err(|error| TicketError::Write(error.to_string()))?;
    bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
    Ok(bytes)
}

/// The checksum was right, so whatever is wrong was made so.
fn decode_body(bytes: &[u8]) -> Option<Ticket> {
    let Body { key, secret, expires, addresses } = postcard::from_bytes(bytes).ok()?;
    if addresses.len() > MAX_TICKET_ADDRESSES {
        return None;
    }
    let key: PublicKey = ed25519::PublicKey::try_from_bytes(&key).ok()?.into();
    let inviter = key.to_peer_id();
    let addresses = addresses.into_iter().map(|bytes| address(bytes, &inviter)).collect::<Option<_>>()?;
    Some(Ticket { inviter, secret, expires, addresses })
}

/// An address without the inviter's id at its end.
fn address(bytes: Vec<u8>, inviter: &PeerId) -> Option<Multiaddr> {
    let mut address = Multiaddr::try_from(bytes).ok()?;
    match address.iter().last()? {
        Protocol::P2p(peer) if peer == *inviter => drop(address.pop()),
        Protocol::P2p(_) => return None,
        _ => {}
    }
    Some(address)
}

/// The key within a peer id, which short keys are.
fn key_of(peer: &PeerId) -> Option<[u8; 32]> {
    let key = PublicKey::try_decode_protobuf(peer.as_ref().digest()).ok()?;
    Some(key.try_into_ed25519().ok()?.to_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Written down when the format was made; must never change.
    const GOLDEN: &str = "AHVEU3DD4KOFECV66VIHWEZOYX4ZKR3WV27L464SIIPOU2IUI3JCYMBRGIZTINJWG44DSYLCMNSGKZUAUST5UBQDBMCMWADRA6IQED5BZUBQQBGAVAAQEBQPUEHTMCTQNEXGK6DBNVYGYZIGB6Q6KA2OAM";

    fn inviter(seed: u8) -> PeerId {
        let mut seed = [seed; 32];
        let keypair = libp2p::identity::Keypair::ed25519_from_bytes(&mut seed).unwrap();
        keypair.public().to_peer_id()
    }

    fn ticket() -> Ticket {
        let addresses = ["/ip4/203.0.113.7/udp/4001/quic-v1", "/ip4/192.168.1.2/tcp/4001", "/dns4/pi.example/tcp/4001"];
        Ticket {
            inviter: inviter(7),
            secret: Secret(*b"0123456789abcdef"),
            expires: 1_800_000_000,
            addresses: addresses.map(|address| address.parse().unwrap()).to_vec(),
        }
    }

    fn text(ticket: Ticket) -> String {
        Ticket::write(ticket.inviter, ticket.secret, ticket.expires, ticket.addresses).unwrap().1
    }

    /// A text with the right checksum over anything.
    fn sealed(content: &[u8]) -> String {
        let mut bytes = content.to_vec();
        bytes.extend(crc32fast::hash(content).to_be_bytes());
        BASE32_NOPAD.encode(&bytes)
    }

    #[test]
    fn the_format_stays() {
        assert_eq!(text(ticket()), GOLDEN);
        assert_eq!(Ticket::decode(GOLDEN).unwrap(), ticket());
    }

    #[test]
    fn it_is_one_word_that_fits_a_small_qr_code() {
        let text = text(ticket());
        assert!(text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit()), "{text}");
        assert!(text.len() < 200, "{}", text.len());
    }

    #[test]
    fn it_survives_mail_and_typing() {
        let text = text(ticket()).to_lowercase();
        let lines: Vec<&str> = text.as_bytes().chunks(60).map(|line| std::str::from_utf8(line).unwrap()).collect();
        assert_eq!(Ticket::decode(&format!("  {}\r\n", lines.join("\r\n\t"))).unwrap(), ticket());
    }

    #[test]
    fn every_truncation_and_every_changed_bit_is_noticed() {
        let text = text(ticket());
        for end in 0..text.len() {
            let error = Ticket::decode(&text[..end]).unwrap_err();
            assert_eq!(error, if end == 0 { TicketError::Empty } else { TicketError::Damaged }, "{end}");
            assert!(Ticket::decode(&text[end + 1..]).is_err());
        }
        let bytes = BASE32_NOPAD.decode(text.as_bytes()).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Ticket::decode(&BASE32_NOPAD.encode(&bytes)), Err(TicketError::Damaged), "{bit}");
        }
    }

    #[test]
    fn a_newer_format_is_not_called_damaged() {
        let error = Ticket::decode(&sealed(&[2, 1, 2, 3])).unwrap_err();
        assert_eq!(error, TicketError::Newer(2));
        assert!(error.to_string().contains("newer version"), "{error}");
        assert!(TicketError::Damaged.to_string().contains("damaged: was it copied whole?"));
    }

    #[test]
    fn what_is_no_ticket_says_so() {
        assert_eq!(Ticket::decode(" \n"), Err(TicketError::Empty));
        assert_eq!(Ticket::decode("/ip4/1.2.3.4"), Err(TicketError::Foreign('/')));
        assert_eq!(Ticket::decode(&"A".repeat(411)), Err(TicketError::TooLong(411)));
        assert_eq!(Ticket::decode(&" ".repeat(10_000)), Err(TicketError::TooLong(10_000)));
        assert_eq!(Ticket::decode("HELLO"), Err(TicketError::Damaged));
        assert_eq!(Ticket::decode("0189"), Err(TicketError::Damaged));
    }

    #[test]
    fn addresses_without_room_are_left_out() {
        let long: Multiaddr = format!("/dns4/{}.example/tcp/4001", "x".repeat(120)).parse().unwrap();
        let short: Multiaddr = "/ip4/192.168.1.2/tcp/4001".parse().unwrap();
        let ticket = Ticket { addresses: vec![short.clone(), long.clone(), long.clone(), short.clone()], ..ticket() };
        let (written, text) = Ticket::write(ticket.inviter, ticket.secret, ticket.expires, ticket.addresses).unwrap();
        assert!(text.len() <= MAX_TICKET_CHARS);
        assert_eq!(written.addresses, [short, long]);
        assert_eq!(Ticket::decode(&text).unwrap(), written);
    }

    #[test]
    fn addresses_of_somebody_else_are_refused() {
        let of = |peer: PeerId| {
            let address = ticket().addresses[0].clone().with(Protocol::P2p(peer));
            Ticket::decode(&text(Ticket { addresses: vec![address], ..ticket() }))
        };
        assert_eq!(of(inviter(7)).unwrap().addresses, ticket().addresses[..1]);
        assert_eq!(of(inviter(8)), Err(TicketError::Damaged));
    }

    #[test]
    fn the_secret_is_not_shown() {
        let shown = format!("{:?}", ticket());
        assert!(shown.contains("Secret(…)") && !shown.contains("48, 49"), "{shown}");
    }

    proptest! {
        #[test]
        fn any_ticket_comes_back(
            seed in any::<u8>(),
            secret in any::<[u8; 16]>(),
            expires in any::<u64>(),
            addresses in prop::collection::vec((any::<[u8; 4]>(), any::<u16>()), 0..=3),
        ) {
            let addresses = addresses.iter().map(|(ip, port)| {
                Multiaddr::from(std::net::Ipv4Addr::from(*ip)).with(Protocol::Udp(*port)).with(Protocol::QuicV1)
            });
            let ticket = Ticket { inviter: inviter(seed), secret: Secret(secret), expires, addresses: addresses.collect() };
            prop_assert_eq!(Ticket::decode(&text(ticket.clone())).unwrap(), ticket);
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            drop(Ticket::decode(&text));
        }

        #[test]
        fn no_content_panics(content in prop::collection::vec(any::<u8>(), 0..300)) {
            drop(Ticket::decode(&sealed(&content)));
            let mut content = content;
            content.insert(0, VERSION);
            drop(Ticket::decode(&sealed(&content)));
        }
    }
}
