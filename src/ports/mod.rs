//! Port mapping: asks the home router to forward the ports that the daemon
//! listens on, by PCP, NAT-PMP and UPnP-IGD.
//!
//! ```text
//! mapper.rs   the task: keeps every port mapped, tells MappingView
//!   ├─ router.rs   the default gateway, from netlink
//!   ├─ announce.rs it says by itself that it restarted
//!   ├─ probe.rs    does it speak PCP, NAT-PMP; did it restart (epoch.rs)
//!   ├─ pmp.rs      mappings by PCP and NAT-PMP
//!   ├─ upnp/       finds and asks a UPnP router: ssdp, http, device, soap
//!   ├─ slot.rs     one port: what is held, and when to do what
//!   └─ trouble.rs  why a port is not mapped, or of no use
//! ```
//!
//! Nobody is contacted but the default gateway, and whoever on its subnet
//! answers the search for a UPnP router. All that such a box says is bounded
//! before it is kept, and made printable before it is shown.
//!
//! IPv4 only. IPv6 needs no mapping but a hole in the router's firewall, which
//! PCP can make; but routers want that asked from the address to be opened, at
//! the gateway's link-local address, and the library binds no address.

mod announce;
mod epoch;
mod mapper;
mod pmp;
mod probe;
mod router;
mod slot;
mod text;
mod trouble;
mod upnp;
mod view;

use std::{fmt, net::Ipv4Addr, sync::Arc};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub use trouble::{BadAddress, Forward, Trouble};
pub use view::{Mapped, MappingView, Method, PortView, Transport};

/// Ports that are kept mapped, of both transports together: routers grant a
/// host a few dozen. Those above are left out.
pub const MAX_PORTS: usize = 16;

/// Which ports to map: those that sockets for every IPv4 address listen on.
/// Port 0 and repetitions are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortsConfig {
    /// TCP ports.
    pub tcp: Vec<u16>,
    /// UDP ports.
    pub udp: Vec<u16>,
    /// Names this node's mappings to PCP servers, which give a mapping to its
    /// own name only. The same after a restart, so that one left behind by a
    /// crash is taken over; unknown to others, who could remove it.
    pub secret: Secret,
}

/// Bytes that nobody else is to know.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl From<[u8; 32]> for Secret {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The running port mapping.
#[derive(Debug)]
pub struct Handle {
    /// What is mapped. Changes when a mapping is made, moves or is lost.
    pub view: watch::Receiver<MappingView>,
    /// Ends after the stop, when mappings are removed: within a second or so.
    pub task: JoinHandle<()>,
    control: Control,
}

/// Tells the port mapping what others found out.
#[derive(Debug, Clone)]
pub struct Control {
    refresh: Arc<Notify>,
    observed: watch::Sender<Option<Ipv4Addr>>,
}

impl Handle {
    /// A handle for commands that others may keep.
    #[must_use]
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// See [`Control::refresh`].
    pub fn refresh(&self) {
        self.control.refresh();
    }

    /// See [`Control::observed`].
    pub fn observed(&self, ip: Option<Ipv4Addr>) {
        self.control.observed(ip);
    }
}

impl Control {
    /// The network changed, or a mapping seems not to work: looks for the
    /// router and maps all ports again, at once.
    pub fn refresh(&self) {
        self.refresh.notify_one();
    }

    /// The address that peers on the internet see this node at. A router that
    /// tells another one is behind another NAT. `None`: not known.
    pub fn observed(&self, ip: Option<Ipv4Addr>) {
        self.observed.send_if_modified(|known| std::mem::replace(known, ip) != ip);
    }
}

/// Starts to map ports, until `stop` is cancelled.
#[must_use]
pub fn spawn(config: &PortsConfig, stop: CancellationToken) -> Handle {
    let (view, view_out) = watch::channel(MappingView::default());
    let (observed, observed_out) = watch::channel(None);
    let refresh = Arc::new(Notify::new());
    let mapper = mapper::Mapper::new(config, view, observed_out);
    let task = tokio::spawn(mapper.run(Arc::clone(&refresh), stop));
    Handle { view: view_out, task, control: Control { refresh, observed } }
}
