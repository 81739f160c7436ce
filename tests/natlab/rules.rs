//! The nftables rules of a router, by kind.
//!
//! All in one table, which a reload replaces; nft 1.0.6 wants each chain and
//! rule on a line of its own. A prerouting nat chain is there even if empty:
//! without it no connection is translated back.

use std::{fmt::Write as _, net::Ipv4Addr};

use crate::{
    kind::{Filtering, Kind, Mapping},
    plan,
};

/// Table of a router's rules.
pub(crate) const TABLE: &str = "inet lab";
/// First outer port of routers that count.
const FIRST_COUNTED: u16 = 20_000;
/// Ports of routers that count, before they begin again.
const COUNTED: u16 = 1024;
/// Ports that a carrier gives to one customer.
const BLOCK: &str = "20000-22047";

/// What the rules speak of.
pub(crate) struct Facts {
    pub(crate) kind: Kind,
    /// Hosts of the LAN reach each other by the router's outer address.
    pub(crate) hairpin: bool,
    pub(crate) outer: Ipv4Addr,
    pub(crate) inner_net: String,
    /// In the order of their outer ports.
    pub(crate) hosts: Vec<Ipv4Addr>,
    /// The outer port of the first host, where ports are changed.
    pub(crate) first_port: u16,
}

/// Drops everything until `RELEASE`, before connections are tracked.
pub(crate) const HOLD: &str = "\
table inet hold {
  chain pre {
    type filter hook prerouting priority -400; policy drop;
  }
}
";
pub(crate) const RELEASE: &str = "delete table inet hold\n";

/// Forgets the mappings that the rules keep themselves.
pub(crate) const FORGET: &str = "flush map inet lab fc\nflush set inet lab seen\n";

/// The rules; loading them replaces those before.
pub(crate) fn text(facts: &Facts) -> String {
    let mut text = format!("table {TABLE} {{\n}}\ndelete table {TABLE}\ntable {TABLE} {{\n");
    text.push_str(
        "map fc {
    type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 300s; size 65536;
}
set seen {
    type ipv4_addr . inet_service . ipv4_addr; flags dynamic,timeout; timeout 120s; size 65536;
}
chain miniupnpd {
}
chain prerouting_miniupnpd {
}
chain postrouting_miniupnpd {
}
",
    );
    chain(&mut text, "pre", "nat hook prerouting priority -100; policy accept", &pre(facts));
    chain(&mut text, "post", "nat hook postrouting priority 100; policy accept", &post(facts));
    chain(&mut text, "input", "filter hook input priority 0; policy accept", &input(facts));
    chain(&mut text, "forward", "filter hook forward priority 0; policy drop", &forward(facts));
    text.push_str("}\n");
    text
}

fn chain(text: &mut String, name: &str, hook: &str, rules: &[String]) {
    writeln!(text, "chain {name} {{\n    type {hook};").unwrap();
    for rule in rules {
        writeln!(text, "    {rule}").unwrap();
    }
    text.push_str("}\n");
}

/// Inbound: to the host that a mapping belongs to.
fn pre(facts: &Facts) -> Vec<String> {
    let mut rules = vec!["iifname \"wan\" jump prerouting_miniupnpd".to_owned()];
    if facts.kind.filtering() != Filtering::AddressAndPort {
        rules.push("iifname \"wan\" meta l4proto udp dnat ip to udp dport map @fc".to_owned());
    }
    if facts.hairpin {
        let outer = facts.outer;
        rules.push(format!("iifname \"lan\" ip daddr {outer} meta l4proto udp dnat ip to udp dport map @fc"));
    }
    rules
}

/// Outbound: the outer port. Only a connection's first packet comes here.
fn post(facts: &Facts) -> Vec<String> {
    let outer = facts.outer;
    let mut rules = vec!["oifname \"wan\" jump postrouting_miniupnpd".to_owned()];
    for (host, port) in assigned(facts) {
        let from = format!("ip saddr {host} udp sport {}", plan::PORT);
        rules.push(format!("oifname \"wan\" {from} update @fc {{ {port} timeout 300s : ip saddr . udp sport }}"));
        rules.push(format!("oifname \"wan\" {from} snat ip to {outer}:{port}"));
        rules.push(format!("oifname \"lan\" ct status dnat {from} snat ip to {outer}:{port}"));
    }
    rules.push(format!(
        "oifname \"wan\" ip saddr {} meta l4proto udp update @fc {{ udp sport timeout 300s : ip saddr . udp sport }}",
        facts.inner_net
    ));
    if facts.hairpin {
        rules.push(format!("oifname \"lan\" ct status dnat ip saddr {} snat ip to {outer}", facts.inner_net));
    }
    rules.push(match facts.kind.mapping() {
        Mapping::Kept | Mapping::Changed => "oifname \"wan\" meta nfproto ipv4 masquerade".to_owned(),
        Mapping::Random => "oifname \"wan\" meta nfproto ipv4 masquerade random,fully-random".to_owned(),
        Mapping::PlusOne => {
            let ports: Vec<_> = (0..COUNTED).map(|n| format!("{n}:{}", FIRST_COUNTED + n)).collect();
            let map = ports.join(",");
            format!(
                "oifname \"wan\" meta l4proto {{tcp,udp}} snat ip to {outer}:numgen inc mod {COUNTED} map {{{map}}}"
            )
        }
        Mapping::Block => {
            format!("oifname \"wan\" meta l4proto {{tcp,udp}} snat ip to {outer}:{BLOCK} random,fully-random")
        }
    });
    // What is neither TCP nor UDP.
    rules.push("oifname \"wan\" meta nfproto ipv4 masquerade".to_owned());
    rules
}

/// Hosts whose port has a fixed outer one: all where ports are changed; where
/// they are kept, all but the first, which has it already.
fn assigned(facts: &Facts) -> Vec<(Ipv4Addr, u16)> {
    let hosts = facts.hosts.iter().copied();
    match facts.kind.mapping() {
        Mapping::Changed => hosts.zip(facts.first_port..).collect(),
        Mapping::Kept => hosts.zip(plan::PORT..).skip(1).collect(),
        Mapping::Random | Mapping::PlusOne | Mapping::Block => Vec::new(),
    }
}

/// To the router itself: nothing from outside. A packet that came too early
/// is dropped before its connection is confirmed; it would take the place of
/// the mapping otherwise.
fn input(facts: &Facts) -> Vec<String> {
    let outer = facts.outer;
    vec![
        "ct state established,related accept".to_owned(),
        "iifname \"wan\" meta l4proto ipv6-icmp accept".to_owned(),
        "iifname \"wan\" drop".to_owned(),
        format!("iifname \"lan\" ip daddr {outer} meta l4proto {{tcp,udp}} drop"),
    ]
}

fn forward(facts: &Facts) -> Vec<String> {
    let mut rules = Vec::new();
    if !facts.kind.udp() {
        rules.push("meta l4proto udp drop".to_owned());
    }
    rules.push("iifname \"lan\" meta l4proto udp update @seen { ip saddr . udp sport . ip daddr }".to_owned());
    rules.push("iifname \"lan\" accept".to_owned());
    rules.push("iifname \"wan\" ct state established,related accept".to_owned());
    rules.push("iifname \"wan\" jump miniupnpd".to_owned());
    match facts.kind.filtering() {
        Filtering::None => rules.push("iifname \"wan\" ct status dnat accept".to_owned()),
        Filtering::Address => {
            rules.push("iifname \"wan\" ip daddr . udp dport . ip saddr @seen accept".to_owned());
        }
        Filtering::AddressAndPort => (),
    }
    rules
}
