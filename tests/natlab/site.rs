//! A site: one or more hosts, with or without a router, on one line to the
//! internet.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use crate::{
    kind::Kind,
    lab::Core,
    netns::{Netns, cable},
    plan,
    router::Router,
    rules::Facts,
};

/// What to build.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec {
    pub(crate) kind: Kind,
    pub(crate) hosts: u8,
    /// Hosts of the site reach each other by the outer address.
    pub(crate) hairpin: bool,
    /// They do not reach each other otherwise.
    pub(crate) isolated: bool,
    /// Between this site and the middle of the internet, one way.
    pub(crate) delay: Duration,
    /// Of packets, on the same stretch, in percent.
    pub(crate) loss: f64,
    /// IPv6 beside IPv4: open for a public host, otherwise behind a firewall
    /// that lets in answers only.
    pub(crate) dual: bool,
}

impl Spec {
    /// One host, no delay, no loss, one family of addresses.
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, hosts: 1, hairpin: false, isolated: false, delay: Duration::ZERO, loss: 0.0, dual: false }
    }

    fn v4(&self) -> bool {
        !self.kind.is_v6()
    }

    fn v6(&self) -> bool {
        self.kind.is_v6() || self.dual
    }
}

pub(crate) struct Site {
    pub(crate) hosts: Vec<Netns>,
    /// From the host to the internet.
    pub(crate) routers: Vec<Router>,
    pub(crate) spec: Spec,
    pub(crate) number: u8,
    /// How often its public address has changed.
    changes: u8,
    core: Arc<Core>,
}

impl Site {
    pub(crate) fn new(core: &Arc<Core>, spec: Spec) -> Self {
        assert!(spec.hosts == 1 || !spec.kind.is_public(), "a public site is one host");
        assert!(!spec.hairpin || !matches!(spec.kind, Kind::Double), "hairpin through two routers");
        let number = core.take_number();
        let mut site =
            Self { hosts: Vec::new(), routers: Vec::new(), spec, number, changes: 0, core: Arc::clone(core) };
        if spec.kind.is_public() {
            site.build_public();
        } else {
            site.build_routers();
            (0..spec.hosts).for_each(|host| site.build_host(host));
        }
        core.lines.set(number, spec.delay, spec.loss);
        site.restore();
        site
    }

    /// The address by which the internet sees it.
    pub(crate) fn public(&self) -> IpAddr {
        match self.spec.kind {
            Kind::V6Firewall => plan::v6_lan_host(self.number, 0).into(),
            Kind::V6Open => plan::v6_wan(self.number).into(),
            _ => plan::public(self.number, self.changes).into(),
        }
    }

    /// The address that a host has itself.
    pub(crate) fn host_ip(&self, host: u8) -> IpAddr {
        match self.spec.kind {
            Kind::None => self.public(),
            Kind::V6Open => plan::v6_wan(self.number).into(),
            Kind::V6Firewall => plan::v6_lan_host(self.number, host).into(),
            _ => plan::lan_host(self.number, host).into(),
        }
    }

    /// All routers as after a reboot, the line as specified.
    pub(crate) fn restore(&mut self) {
        self.core.lines.set(self.number, self.spec.delay, self.spec.loss);
        for router in self.routers.iter_mut().rev() {
            router.reset();
        }
    }

    /// The line loses everything, silently; or carries again.
    pub(crate) fn outage(&self, down: bool) {
        self.core.lines.set_down(self.number, down);
    }

    /// Bytes that have come to the first host.
    pub(crate) fn received(&self) -> u64 {
        // Its /sys is that of the namespace it is mounted in; this is not.
        let table = self.hosts[0].enter(|| std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
        let line = table.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// A host's own interface goes down or up, which its system notices.
    pub(crate) fn unplug(&self, host: u8, down: bool) {
        let netns = &self.hosts[usize::from(host)];
        if down {
            netns.ip("link set eth0 down");
        } else {
            // Routes and IPv6 addresses went with the link.
            netns.ip(&format!("link set eth0 up\n{}{}", self.host_addresses(host), self.host_routes()));
        }
    }

    /// All routers lose the mappings that traffic made.
    pub(crate) fn flush(&mut self) {
        self.routers.iter_mut().for_each(Router::flush);
    }

    /// The provider gives another public address; mappings to the old one are
    /// lost.
    pub(crate) fn new_address(&mut self) {
        assert!(self.spec.v4() && self.routers.len() == 1, "only a site with one router changes its address");
        let old = plan::public(self.number, self.changes);
        self.changes += 1;
        let new = plan::public(self.number, self.changes);
        let gateway = plan::gateway(self.number);
        self.core.route_v4(self.number, old, new);
        let router = &mut self.routers[0];
        router.netns.ip(&format!(
            "address del {old}/24 dev wan\naddress add {new}/24 dev wan\nroute replace default via {gateway}"
        ));
        router.facts.outer = new;
        router.reset();
    }

    /// The router becomes another kind.
    pub(crate) fn change_kind(&mut self, kind: Kind) {
        assert!(kind.translates() && kind != Kind::Double && self.routers.len() == 1, "{kind:?}");
        self.spec.kind = kind;
        self.routers[0].change(kind);
    }

    fn name(&self, what: &str) -> String {
        format!("{}-{}{what}", self.core.name, self.number)
    }

    fn build_public(&mut self) {
        let netns = Netns::new(&self.name("h0"));
        self.connect(&netns, "eth0");
        self.hosts.push(netns);
    }

    /// Lays the line from the internet to this namespace, with the public
    /// addresses.
    fn connect(&self, netns: &Netns, device: &str) {
        let number = self.number;
        let line = format!("site{number}");
        cable((&self.core.netns, &line), (netns, device));
        self.core.netns.ip(&format!("link set {line} up"));
        netns.ip(&format!("link set {device} up"));
        if self.spec.v4() {
            let (gateway, public) = (plan::gateway(number), plan::public(number, 0));
            self.core.netns.ip(&format!(
                "address add {gateway}/24 dev {line} noprefixroute\nroute add {public} dev {line} src {gateway}"
            ));
            netns.ip(&format!("address add {public}/24 dev {device}\nroute add default via {gateway}"));
        }
        if self.spec.v6() {
            let (gateway, wan, net) = (plan::v6_gateway(number), plan::v6_wan(number), plan::v6_net(number));
            self.core.netns.ip(&format!(
                "address add {gateway}/64 dev {line} nodad noprefixroute\nroute add {wan} dev {line}\n\
                 route add {net} via {wan} dev {line}"
            ));
            netns.ip(&format!("address add {wan}/64 dev {device} nodad\nroute add default via {gateway}"));
        }
    }

    fn build_routers(&mut self) {
        let number = self.number;
        let hosts = (0..self.spec.hosts).map(|host| plan::lan_host(number, host)).collect();
        let double = self.spec.kind == Kind::Double;
        let outer = if double { plan::carrier_customer(number) } else { plan::public(number, 0) };
        let home = self.router("r", hosts, outer, plan::lan_net(number));
        let mut addresses = format!("address add {}/24 dev lan\n", plan::lan_router(number));
        if self.spec.v6() {
            addresses += &format!("address add {}/64 dev lan nodad\n", plan::v6_lan_router(number));
        }
        home.netns.ip(&addresses);
        if double {
            let customers = vec![plan::carrier_customer(number)];
            let carrier = self.router("c", customers, plan::public(number, 0), plan::carrier_net(number));
            let (above, below) = (plan::carrier_router(number), plan::carrier_customer(number));
            cable((&carrier.netns, "customer"), (&home.netns, "wan"));
            carrier.netns.ip(&format!("link set customer master lan up\naddress add {above}/24 dev lan"));
            home.netns.ip(&format!("link set wan up\naddress add {below}/24 dev wan\nroute add default via {above}"));
            self.connect(&carrier.netns, "wan");
            self.routers = vec![home, carrier];
        } else {
            self.connect(&home.netns, "wan");
            self.routers = vec![home];
        }
    }

    fn router(&self, what: &str, hosts: Vec<Ipv4Addr>, outer: Ipv4Addr, inner_net: String) -> Router {
        let facts = Facts {
            kind: self.spec.kind,
            hairpin: self.spec.hairpin,
            outer,
            inner_net,
            hosts,
            first_port: plan::CHANGED_PORT,
        };
        Router::new(&self.name(what), facts, self.core.directory.clone())
    }

    fn build_host(&mut self, host: u8) {
        let netns = Netns::new(&self.name(&format!("h{host}")));
        let port = format!("host{host}");
        let router = &self.routers[0].netns;
        cable((router, &port), (&netns, "eth0"));
        router.ip(&format!("link set {port} master lan up"));
        if self.spec.isolated {
            router.ip(&format!("link set {port} type bridge_slave isolated on"));
        }
        netns.ip(&format!("link set eth0 up\n{}{}", self.host_addresses(host), self.host_routes()));
        self.hosts.push(netns);
    }

    /// The addresses of a host.
    fn host_addresses(&self, host: u8) -> String {
        let public = self.spec.kind.is_public();
        let number = self.number;
        let mut lines = String::new();
        if self.spec.v4() {
            let ip = if public { plan::public(number, self.changes) } else { plan::lan_host(number, host) };
            lines += &format!("address replace {ip}/24 dev eth0\n");
        }
        if self.spec.v6() {
            let ip = if public { plan::v6_wan(number) } else { plan::v6_lan_host(number, host) };
            lines += &format!("address replace {ip}/64 dev eth0 nodad\n");
        }
        lines
    }

    /// The default routes of a host.
    fn host_routes(&self) -> String {
        let public = self.spec.kind.is_public();
        let number = self.number;
        let mut lines = String::new();
        if self.spec.v4() {
            let via = if public { plan::gateway(number) } else { plan::lan_router(number) };
            lines += &format!("route replace default via {via}\n");
        }
        if self.spec.v6() {
            let via = if public { plan::v6_gateway(number) } else { plan::v6_lan_router(number) };
            lines += &format!("route replace default via {via}\n");
        }
        lines
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.core.release_number(self.number);
        self.hosts.clear();
        self.routers.clear();
    }
}
