//! A router: a namespace with a line to the internet (`wan`), a LAN (`lan`, a
//! bridge), and rules between them.

use std::path::PathBuf;

use crate::{
    igd::Miniupnpd,
    kind::{Kind, Mapping},
    netns::Netns,
    plan,
    rules::{self, Facts},
};

pub(crate) struct Router {
    // Ended before the namespace goes.
    igd: Option<Miniupnpd>,
    pub(crate) netns: Netns,
    pub(crate) facts: Facts,
    /// For the files of its port mapping service.
    directory: PathBuf,
}

impl Router {
    /// Makes the namespace, with its LAN; rules come when its `wan` is there.
    pub(crate) fn new(name: &str, facts: Facts, directory: PathBuf) -> Self {
        let netns = Netns::new(name);
        netns.forward();
        netns.ip("link add lan type bridge forward_delay 0 mcast_snooping 0\nlink set lan up");
        Self { igd: None, netns, facts, directory }
    }

    /// Begins as after a reboot: rules of its kind, no mappings. Nothing
    /// passes meanwhile.
    pub(crate) fn reset(&mut self) {
        self.igd = None;
        self.facts.first_port = plan::CHANGED_PORT;
        self.netns.nft(&(rules::HOLD.to_owned() + &rules::text(&self.facts)));
        self.forget_connections();
        self.netns.nft(rules::RELEASE);
        let igd = self.facts.kind.igd();
        self.igd = igd.map(|protocol| Miniupnpd::start(&self.netns, protocol, self.facts.outer, &self.directory));
    }

    /// Forgets the mappings that traffic made; those that hosts asked for
    /// stay. Where ports are changed, the next mappings have others. Nothing
    /// passes meanwhile.
    pub(crate) fn flush(&mut self) {
        if self.facts.kind.mapping() == Mapping::Changed {
            self.facts.first_port += 100;
            self.netns.nft(&(rules::HOLD.to_owned() + &rules::text(&self.facts)));
        } else {
            self.netns.nft(&(rules::HOLD.to_owned() + rules::FORGET));
        }
        self.forget_connections();
        self.netns.nft(rules::RELEASE);
    }

    /// Becomes a router of another kind.
    pub(crate) fn change(&mut self, kind: Kind) {
        self.facts.kind = kind;
        self.reset();
    }

    fn forget_connections(&self) {
        self.netns.run("conntrack", &["-F"], "");
    }
}
