//! One address of this node, and what servers said of it.

use libp2p::PeerId;
use tokio::time::Instant;

use super::place::Host;
use crate::node::{AddressSource, Verdict};

/// Verdicts kept of one address.
const MAX_VERDICTS: usize = 4;
/// Failures in a row after which one host alone is believed.
pub(super) const LONE_FAILURES: usize = 3;
/// The same for strangers alone, where a server that the user confided in gives
/// no verdict.
pub(super) const STRANGERS_FAILURES: usize = 6;

/// An address of this node.
#[derive(Debug, Clone)]
pub(in crate::swarm) struct Target {
    pub(in crate::swarm) source: AddressSource,
    /// The settings say that it works.
    pub(super) assumed: bool,
    /// The newest last; one of each peer.
    pub(in crate::swarm) verdicts: Vec<Said>,
    /// Others are told of it.
    pub(in crate::swarm) advertised: bool,
    /// When to ask; `None` while a server is asked or there is none.
    pub(super) next: Option<Instant>,
    pub(super) asking: Option<PeerId>,
    /// Servers in a row that gave no verdict.
    pub(super) silent: u32,
    /// Verdicts in a row that it does not work.
    pub(super) failures: usize,
    /// When a server connected last.
    worked: Option<Instant>,
    /// A server got in that had no reason but the address, and nothing that is
    /// believed was heard against it since.
    proven: bool,
    /// Said that an address that the settings name does not work.
    complained: bool,
}

/// What a server said of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::swarm) struct Said {
    pub(in crate::swarm) peer: PeerId,
    pub(in crate::swarm) host: Host,
    pub(in crate::swarm) reachable: bool,
    /// This node had sent packets to that host from the very socket, which a
    /// NAT may take for a reason to let the host in.
    pub(in crate::swarm) contacted: bool,
    /// The user named that peer, or trusts it.
    pub(in crate::swarm) confided: bool,
    pub(in crate::swarm) at: Instant,
}

/// What is to be done about an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::swarm) enum Change {
    /// Others are to be told of it.
    Confirmed,
    /// Others are no longer to be told of it; with the cause.
    Failed(String),
}

impl Target {
    pub(super) fn new(source: AddressSource, now: Instant) -> Self {
        Self {
            source,
            assumed: false,
            verdicts: Vec::new(),
            advertised: false,
            next: Some(now),
            asking: None,
            silent: 0,
            failures: 0,
            worked: None,
            proven: false,
            complained: false,
        }
    }

    /// As things are. One server that fails is not believed yet.
    pub(in crate::swarm) fn verdict(&self) -> Verdict {
        if self.verdicts.iter().any(|said| said.reachable) {
            Verdict::Reachable
        } else if !self.verdicts.is_empty() {
            Verdict::Unreachable
        } else if self.assumed {
            Verdict::Assumed
        } else {
            Verdict::Unknown
        }
    }

    /// A server got in that had no reason but the address, or the settings say
    /// that anybody can.
    pub(in crate::swarm) fn is_proven(&self) -> bool {
        self.assumed || self.proven
    }

    /// The network may be another one: what servers said is forgotten. What
    /// others were told stays until it fails, and so does that it is proven,
    /// unless a NAT of another kind would show the same address.
    pub(super) fn clear(&mut self, now: Instant) {
        self.verdicts.clear();
        (self.silent, self.failures) = (0, 0);
        self.proven &= self.source != AddressSource::Observed;
        if self.asking.is_none() {
            self.next = Some(now);
        }
    }

    /// Servers that connected to it.
    pub(in crate::swarm) fn verified_by(&self) -> Vec<PeerId> {
        self.verdicts.iter().filter(|said| said.reachable).map(|said| said.peer).collect()
    }

    pub(super) fn take(&mut self, said: Said) {
        if said.reachable {
            self.worked = Some(said.at);
            (self.failures, self.complained) = (0, false);
            self.proven |= !(said.contacted && self.source == AddressSource::Observed);
        } else {
            self.failures += 1;
        }
        self.silent = 0;
        self.verdicts.retain(|other| other.peer != said.peer);
        if self.verdicts.len() >= MAX_VERDICTS {
            self.verdicts.remove(0);
        }
        self.verdicts.push(said);
    }

    /// Verdicts of those that could not connect since one could.
    pub(super) fn failing(&self) -> impl Iterator<Item = &Said> {
        self.verdicts.iter().filter(|said| !said.reachable && self.worked.is_none_or(|at| said.at > at))
    }

    /// Whether to believe that it does not work. `others`: another host could
    /// be asked; `confidants`: so could someone that the user confided in.
    pub(super) fn is_refuted(&self, others: bool, confidants: bool) -> bool {
        if !others {
            return self.failures >= LONE_FAILURES;
        }
        let confided = self.failing().any(|said| said.confided);
        different_hosts(self.failing()) >= 2 && (confided || !confidants || self.failures >= STRANGERS_FAILURES)
    }

    /// It is believed not to work: what is to be told. An address that the
    /// settings name stays.
    pub(super) fn fail(&mut self) -> Option<Change> {
        self.verdicts.retain(|said| !said.reachable);
        self.proven = false;
        let told = match self.assumed {
            true => !std::mem::replace(&mut self.complained, true),
            false => std::mem::replace(&mut self.advertised, false),
        };
        let by: Vec<String> = self.verdicts.iter().map(|said| said.peer.to_string()).collect();
        told.then(|| Change::Failed(format!("could not be reached by {}", by.join(", "))))
    }
}

pub(super) fn different_hosts<'a>(all: impl Iterator<Item = &'a Said>) -> usize {
    let mut hosts: Vec<&Host> = Vec::new();
    for said in all {
        if !hosts.iter().any(|host| host.may_be(&said.host)) {
            hosts.push(&said.host);
        }
    }
    hosts.len()
}
