//! What happens to a live site does happen.

use std::net::SocketAddr;

use super::{DELAY, sockets::Peer};
use crate::{
    kind::Kind,
    lab::Lab,
    plan,
    site::{Site, Spec},
};

/// Each event with whether it did what it says.
pub(crate) fn events(lab: &Lab) -> Vec<(&'static str, bool)> {
    let mut site = lab.site(Spec { delay: DELAY, ..Spec::new(Kind::PortRestricted) });
    let servers = [0, 1].map(|_| lab.site(Spec { delay: DELAY, ..Spec::new(Kind::None) }));
    vec![
        ("mappings flushed", flushed(&mut site, &servers[0])),
        ("line out", outage(&site, &servers[0])),
        ("host unplugged", unplugged(&site, &servers[0])),
        ("new public address", new_address(&mut site, &servers[0])),
        ("NAT type changed", kind_changed(&mut site, &servers)),
        ("packets lost, order kept", loses_in_order(lab)),
    ]
}

/// An open mapping is closed until the host writes again.
fn flushed(site: &mut Site, server: &Site) -> bool {
    let (client, server) = (Peer::new(site, 0, plan::PORT), Peer::new(server, 0, 5001));
    let Some(outer) = client.seen_by(&server) else { return false };
    let open = server.reaches(outer, &client);
    site.flush();
    let closed = !server.reaches(outer, &client);
    open && closed && client.seen_by(&server) == Some(outer) && server.reaches(outer, &client)
}

fn outage(site: &Site, server: &Site) -> bool {
    let (client, server) = (Peer::new(site, 0, plan::PORT), Peer::new(server, 0, 5001));
    site.outage(true);
    let silent = client.seen_by(&server).is_none();
    site.outage(false);
    silent && client.seen_by(&server).is_some()
}

fn unplugged(site: &Site, server: &Site) -> bool {
    let (client, server) = (Peer::new(site, 0, plan::PORT), Peer::new(server, 0, 5001));
    site.unplug(0, true);
    let silent = client.seen_by(&server).is_none();
    site.unplug(0, false);
    silent && client.seen_by(&server).is_some()
}

/// The host is seen at the new address, and the old one is nobody's.
fn new_address(site: &mut Site, server: &Site) -> bool {
    let (client, server) = (Peer::new(site, 0, plan::PORT), Peer::new(server, 0, 5001));
    let old = client.seen_by(&server);
    site.new_address();
    let new = client.seen_by(&server);
    let moved = new.map(|address| address.ip()) == Some(site.public()) && new != old;
    moved && old.is_some_and(|old| !server.reaches(old, &client))
}

/// Ports kept before differ by destination after.
fn kind_changed(site: &mut Site, servers: &[Site; 2]) -> bool {
    let client = Peer::new(site, 0, plan::PORT);
    let servers = [Peer::new(&servers[0], 0, 5001), Peer::new(&servers[1], 0, 5001)];
    let ports = || {
        let seen = servers.each_ref().map(|server| client.seen_by(server));
        seen.map(|address| address.as_ref().map_or(0, SocketAddr::port))
    };
    let before = ports();
    site.change_kind(Kind::Symmetric);
    let after = ports();
    before == [plan::PORT; 2] && after[0] != after[1] && !after.contains(&0)
}

/// Of packets between two sites that lose 5% each, about 90.25% arrive, in the
/// order in which they were sent.
fn loses_in_order(lab: &Lab) -> bool {
    const SENT: u32 = 4000;
    const BURST: u32 = 40;
    let sites = [0, 1].map(|_| lab.site(Spec { delay: DELAY, loss: 5.0, ..Spec::new(Kind::None) }));
    let (from, to) = (Peer::new(&sites[0], 0, 5001), Peer::new(&sites[1], 0, 5001));
    let mut heard = Vec::new();
    for first in (0..SENT).step_by(BURST as usize) {
        (first..first + BURST).for_each(|number| from.say(number, &to));
        heard.extend(to.hear(BURST));
    }
    let share = heard.len() as f64 / f64::from(SENT);
    heard.is_sorted() && (0.87..0.935).contains(&share)
}
