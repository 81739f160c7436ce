//! Asks the router whether it speaks PCP and NAT-PMP, without changing
//! anything there. Both are asked on one port, in one go, twice and a third
//! time; what the router counts since its start comes with each answer.

use std::{io, net::Ipv4Addr, time::Duration};

use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use super::router::Router;

/// When the questions are asked again, and when no answer is the answer. A
/// router answers within milliseconds, or after a moment on a busy Wi-Fi.
const WAITS: [Duration; 3] = [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1)];
/// No answer of either protocol is longer (RFC 6887, 7).
const MAX_DATAGRAM: usize = 1100;
/// Datagrams looked at: beyond, someone plays games.
const MAX_DATAGRAMS: usize = 16;

const NAT_PMP_VERSION: u8 = 0;
const PCP_VERSION: u8 = 2;
/// Set in what answers a question.
const ANSWER: u8 = 0x80;
const SUCCESS: u8 = 0;
const UNSUPPORTED_VERSION: u8 = 1;
const PCP_HEADER: usize = 24;
const NAT_PMP_HEADER: usize = 8;
const NAT_PMP_ADDRESS: usize = 12;

/// What the router answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Answers {
    /// It speaks PCP, and this is its count of seconds.
    pub(super) pcp: Option<u32>,
    /// It speaks NAT-PMP.
    pub(super) nat_pmp: Option<NatPmp>,
    no_pcp: bool,
    no_nat_pmp: bool,
}

/// A router that speaks NAT-PMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NatPmp {
    pub(super) epoch: u32,
    /// Its external address, if it has one.
    pub(super) external: Option<Ipv4Addr>,
}

impl Answers {
    pub(super) fn is_silent(&self) -> bool {
        self.pcp.is_none() && self.nat_pmp.is_none()
    }

    fn complete(&self) -> bool {
        (self.pcp.is_some() || self.no_pcp) && (self.nat_pmp.is_some() || self.no_nat_pmp)
    }

    fn take(&mut self, datagram: &[u8]) {
        let &[version, operation, _, result, ..] = datagram else { return };
        if operation & ANSWER == 0 {
            return;
        }
        let word = |at: usize| {
            let bytes = datagram.get(at..at + 4)?;
            Some(u32::from_be_bytes(bytes.try_into().ok()?))
        };
        match (version, operation & !ANSWER) {
            // Whatever it says of the question, it says it in PCP.
            (PCP_VERSION, 0) if datagram.len() >= PCP_HEADER => match result {
                // This answers a question in NAT-PMP, if it was copied from it.
                UNSUPPORTED_VERSION => self.no_nat_pmp = true,
                _ => self.pcp = word(8),
            },
            (NAT_PMP_VERSION, 0) if datagram.len() >= NAT_PMP_HEADER => match result {
                UNSUPPORTED_VERSION => self.no_pcp = true,
                result => {
                    let external = (result == SUCCESS && datagram.len() >= NAT_PMP_ADDRESS).then(|| word(8)).flatten();
                    let external = external.map(Ipv4Addr::from_bits).filter(|ip| !ip.is_unspecified());
                    self.nat_pmp = word(4).map(|epoch| NatPmp { epoch, external });
                }
            },
            _ => {}
        }
    }
}

/// Asks. Returns as soon as both are known; a router that speaks neither is
/// known after [`WAITS`], or at once if it refuses.
pub(super) async fn ask(router: &Router) -> Answers {
    let mut answers = Answers::default();
    if let Err(error) = exchange(router, &mut answers).await {
        tracing::debug!(router = %router.ip, %error, "no PCP or NAT-PMP");
    }
    answers
}

async fn exchange(router: &Router, answers: &mut Answers) -> io::Result<()> {
    let socket = UdpSocket::bind((router.local, 0)).await?;
    // Nobody else's datagrams are received.
    socket.connect((router.ip, crab_nat::GATEWAY_PORT)).await?;
    let mut left = MAX_DATAGRAMS;
    for wait in WAITS {
        if answers.pcp.is_none() && !answers.no_pcp {
            socket.send(&announce(router.local)).await?;
        }
        if answers.nat_pmp.is_none() && !answers.no_nat_pmp {
            socket.send(&[NAT_PMP_VERSION, 0]).await?;
        }
        let until = Instant::now() + wait;
        let mut datagram = [0; MAX_DATAGRAM];
        while let Ok(received) = timeout_at(until, socket.recv(&mut datagram)).await {
            let length = received?;
            answers.take(datagram.get(..length).unwrap_or_default());
            left -= 1;
            if answers.complete() || left == 0 {
                return Ok(());
            }
        }
        // One protocol is enough; the other had its time.
        if !answers.is_silent() {
            return Ok(());
        }
    }
    Ok(())
}

/// PCP's ANNOUNCE, which every server answers and which changes nothing.
fn announce(local: Ipv4Addr) -> [u8; PCP_HEADER] {
    let mut question = [0; PCP_HEADER];
    question[0] = PCP_VERSION;
    question[8..].copy_from_slice(&local.to_ipv6_mapped().octets());
    question
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(datagram: &[u8]) -> Answers {
        let mut answers = Answers::default();
        answers.take(datagram);
        answers
    }

    fn pcp(result: u8) -> [u8; PCP_HEADER] {
        let mut answer = [0; PCP_HEADER];
        (answer[0], answer[1], answer[3], answer[11]) = (PCP_VERSION, ANSWER, result, 77);
        answer
    }

    #[test]
    fn answers_of_both_are_read() {
        assert_eq!(taken(&pcp(SUCCESS)).pcp, Some(77));
        assert_eq!(taken(&pcp(4)).pcp, Some(77), "a router that announces nothing speaks PCP all the same");
        let nat_pmp = taken(&[0, 128, 0, 0, 0, 0, 1, 0, 128, 66, 0, 1]).nat_pmp;
        assert_eq!(nat_pmp, Some(NatPmp { epoch: 256, external: Some(Ipv4Addr::new(128, 66, 0, 1)) }));
        let without = taken(&[0, 128, 0, 3, 0, 0, 1, 0]).nat_pmp;
        assert_eq!(without, Some(NatPmp { epoch: 256, external: None }));
    }

    #[test]
    fn a_refused_version_ends_the_waiting_for_it() {
        let mut answers = taken(&[0, 128, 0, 1, 0, 0, 1, 0]);
        assert!(answers.is_silent() && answers.no_pcp && !answers.complete());
        answers.take(&[0, 128, 0, 0, 0, 0, 1, 0, 128, 66, 0, 1]);
        assert!(answers.complete() && !answers.is_silent());
    }

    #[test]
    fn what_is_no_answer_is_nothing() {
        for datagram in [
            &[][..],
            &[2],
            &[2, 128, 0],
            &[2, 128, 0, 0, 0, 0, 0, 0],
            &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 128, 0, 0],
            &[0, 129, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[1, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0xff; MAX_DATAGRAM],
        ] {
            assert!(taken(datagram).is_silent(), "{datagram:?}");
        }
    }

    #[test]
    fn the_question_names_this_host() {
        let question = announce(Ipv4Addr::new(192, 168, 1, 7));
        assert_eq!(question[..2], [2, 0]);
        assert_eq!(question[18..], [0xff, 0xff, 192, 168, 1, 7]);
    }
}
