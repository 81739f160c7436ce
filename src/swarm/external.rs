//! Addresses that others are told: those that were verified, and those that
//! need no proof, of the settings, and on a node that serves everyone its own.

use std::collections::BTreeSet;

use libp2p::Multiaddr;

use super::{
    SwarmConfig,
    route::{is_dialable, is_loopback, route},
    task::Task,
};
use crate::{node::Serve, types::Route};

/// What others are told.
#[derive(Debug)]
pub(super) struct External {
    configured: BTreeSet<Multiaddr>,
    /// Nobody is there to check the addresses of the only server.
    serves_all: bool,
    verified: Vec<Multiaddr>,
    told: BTreeSet<Multiaddr>,
}

impl External {
    pub(super) fn new(config: &SwarmConfig) -> Self {
        Self {
            configured: config.external.iter().cloned().collect(),
            serves_all: config.serve == Serve::On,
            verified: Vec::new(),
            told: BTreeSet::new(),
        }
    }

    /// Addresses that others are told.
    pub(super) fn told(&self) -> impl Iterator<Item = &Multiaddr> {
        self.told.iter()
    }

    /// Whether the settings name any.
    pub(super) fn is_configured(&self) -> bool {
        !self.configured.is_empty()
    }

    /// Servers could connect to these.
    pub(super) fn set_verified(&mut self, verified: Vec<Multiaddr>) {
        self.verified = verified;
    }

    /// What is new and what is gone, with these addresses listened on.
    fn update(&mut self, listen: Vec<Multiaddr>) -> (Vec<Multiaddr>, Vec<Multiaddr>) {
        let mut now = self.configured.clone();
        now.extend(self.verified.iter().cloned());
        if self.serves_all {
            now.extend(own(listen));
        }
        let new = now.difference(&self.told).cloned().collect();
        let gone = self.told.difference(&now).cloned().collect();
        self.told = now;
        (new, gone)
    }
}

impl Task {
    /// Tells the behaviours, and through them peers, where this node is.
    pub(super) fn tell_external(&mut self) {
        let (new, gone) = self.external.update(self.listeners.addresses());
        new.into_iter().for_each(|address| self.swarm.add_external_address(address));
        gone.iter().for_each(|address| self.swarm.remove_external_address(address));
    }
}

/// The global ones; a node of a test or of a closed network has none, and
/// serves there.
fn own(listen: Vec<Multiaddr>) -> Vec<Multiaddr> {
    let mut all: Vec<Multiaddr> = listen.into_iter().filter(is_dialable).collect();
    for kind in [|address: &Multiaddr| route(address) == Route::Direct, |address: &Multiaddr| !is_loopback(address)] {
        if all.iter().any(kind) {
            all.retain(kind);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<Multiaddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_server_tells_the_widest_addresses_it_has() {
        let all =
            addresses(&["/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.2/tcp/1", "/ip4/8.8.8.8/tcp/1", "/ip6/fe80::1/tcp/1"]);
        assert_eq!(own(all.clone()), all[2..3]);
        assert_eq!(own(all[..2].to_vec()), all[1..2]);
        assert_eq!(own(all[..1].to_vec()), all[..1]);
    }

    #[test]
    fn what_is_told_follows_the_interfaces() {
        let configured = addresses(&["/dns4/pi.example/tcp/1"]);
        let one = addresses(&["/ip4/8.8.8.8/tcp/1"]);
        let mut external = External {
            configured: configured.iter().cloned().collect(),
            serves_all: true,
            verified: vec![],
            told: BTreeSet::new(),
        };
        assert_eq!(external.update(one.clone()), ([one.clone(), configured].concat(), vec![]));
        assert_eq!(external.update(one.clone()), (vec![], vec![]));
        assert_eq!(external.update(vec![]), (vec![], one.clone()));
        external.serves_all = false;
        assert_eq!(external.update(one.clone()), (vec![], vec![]));
        external.set_verified(one.clone());
        assert_eq!(external.update(vec![]), (one.clone(), vec![]));
        external.set_verified(vec![]);
        assert_eq!(external.update(one.clone()), (vec![], one));
    }
}
