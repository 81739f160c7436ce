//! The middle of a lab's internet: packets of all sites come out of a TUN
//! device, wait their time, and go back in.
//!
//! One thread, one queue sorted by time and arrival: the packets from one
//! site to another keep their order as long as the delays stay the same.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::{line::Lines, netns::Netns, plan};

/// Name of the device.
pub(crate) const DEVICE: &str = "middle";
/// Packets under way at once, about 30 MB: more than two peers fill at any
/// delay a test asks for.
const MAX_QUEUED: usize = 20_000;
/// Largest packet.
const MTU: usize = 1500;
/// Packets taken in before those that are due go out.
const BATCH: usize = 64;
/// Longest wait, after which the thread looks whether it is to end.
const IDLE: Duration = Duration::from_millis(50);

pub(crate) struct Forwarder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Forwarder {
    /// Makes the device in this namespace and serves it.
    pub(crate) fn start(netns: &Netns, lines: Arc<Lines>) -> Self {
        let device = netns.enter(|| DeviceBuilder::new().name(DEVICE).mtu(1500).build_sync()).unwrap();
        device.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let mut middle = Middle { device, lines, queue: BinaryHeap::new(), spare: Vec::new(), arrivals: 0 };
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    middle.turn();
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("natlab: the forwarder failed");
        }
    }
}

/// A packet under way; the first to go is the one due first, then the one
/// that came first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    due: Instant,
    arrival: u64,
    bytes: Vec<u8>,
}

struct Middle {
    device: SyncDevice,
    lines: Arc<Lines>,
    queue: BinaryHeap<Reverse<Packet>>,
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
    arrivals: u64,
}

impl Middle {
    fn turn(&mut self) {
        self.wait();
        for _ in 0..BATCH {
            if !self.take_in() {
                break;
            }
        }
        self.let_out();
    }

    /// Until a packet comes or one is due.
    fn wait(&self) {
        let due = self.queue.peek().map(|Reverse(packet)| packet.due.saturating_duration_since(Instant::now()));
        let wait = due.unwrap_or(IDLE).min(IDLE);
        if wait.is_zero() {
            return;
        }
        let device = PollFd::new(self.device.as_fd(), PollFlags::POLLIN);
        // A signal ends it early, which does no harm.
        let _ = ppoll(&mut [device], Some(TimeSpec::from_duration(wait)), None);
    }

    /// Takes one packet from the device, if there is one.
    fn take_in(&mut self) -> bool {
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.resize(MTU, 0);
        match self.device.recv(&mut bytes) {
            Ok(length) => bytes.truncate(length),
            Err(error) => {
                assert!(error.kind() == io::ErrorKind::WouldBlock, "the TUN device: {error}");
                self.spare.push(bytes);
                return false;
            }
        }
        match self.due(&bytes) {
            Some(due) => {
                self.arrivals += 1;
                self.queue.push(Reverse(Packet { due, arrival: self.arrivals, bytes }));
            }
            None => self.spare.push(bytes),
        }
        true
    }

    /// When this packet arrives; `None` if it does not.
    fn due(&self, bytes: &[u8]) -> Option<Instant> {
        let Some((from, to)) = sites(bytes) else {
            self.lines.strays.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        if self.queue.len() >= MAX_QUEUED {
            self.lines.overflows.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Instant::now() + self.lines.journey(from, to)?)
    }

    /// Hands on all that are due.
    fn let_out(&mut self) {
        while self.queue.peek().is_some_and(|Reverse(packet)| packet.due <= Instant::now()) {
            let Some(Reverse(packet)) = self.queue.pop() else { return };
            // The kernel refuses a packet it has no route for, or no room.
            drop(self.device.send(&packet.bytes));
            self.spare.push(packet.bytes);
        }
    }
}

/// The sites that a packet is from and for.
fn sites(bytes: &[u8]) -> Option<(u8, u8)> {
    let (from, to): (IpAddr, IpAddr) = match bytes.first()? >> 4 {
        4 => (v4(bytes.get(12..16)?)?.into(), v4(bytes.get(16..20)?)?.into()),
        6 => (v6(bytes.get(8..24)?)?.into(), v6(bytes.get(24..40)?)?.into()),
        _ => return None,
    };
    Some((plan::site_of(from)?, plan::site_of(to)?))
}

fn v4(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(<[u8; 4]>::try_from(bytes).ok()?.into())
}

fn v6(bytes: &[u8]) -> Option<Ipv6Addr> {
    Some(<[u8; 16]>::try_from(bytes).ok()?.into())
}
