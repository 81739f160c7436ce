//! The network's views as the API shows them.

use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};

use super::{
    advice::{Advice, summary},
    convert::{route, with_peer},
};
use crate::{
    clock,
    node::{
        AddressSource, AddressView, ConnectionView, KnownAddressView, KnownSource, NatClass, NatView, PunchView,
        RelayState, RelayView, Serve, ServingView, Verdict, relay_of,
    },
    ports::{Mapped, MappingView, Method, PortView, Transport},
    proto,
    types::Route,
};

/// When something was that long ago, in Unix milliseconds.
fn ago(age: Duration) -> i64 {
    clock::wall_ms().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}

/// When something will be, in Unix milliseconds.
fn ahead(left: Duration) -> i64 {
    clock::wall_ms().saturating_add(i64::try_from(left.as_millis()).unwrap_or(i64::MAX))
}

/// At least 1: 0 means that there is none.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

pub(super) fn float_millis(duration: Option<Duration>) -> f64 {
    duration.map_or(0.0, |duration| duration.as_secs_f64() * 1000.0)
}

/// The relay that carries a connection, as text; empty if none does.
pub(super) fn relay_id(way: Route, address: &Multiaddr) -> String {
    let relay = if way == Route::Relayed { relay_of(address) } else { None };
    text(relay)
}

/// Empty if there is none.
fn text(shown: Option<impl ToString>) -> String {
    shown.map_or_else(String::new, |shown| shown.to_string())
}

pub(super) fn advice(advice: Advice) -> proto::Advice {
    proto::Advice { code: advice.code.to_owned(), cause: advice.cause, cures: advice.cures }
}

pub(super) fn nat(view: &NatView) -> proto::Nat {
    use proto::NatType;
    let kind = match view.class {
        NatClass::Unknown => NatType::Unspecified,
        NatClass::None => NatType::None,
        NatClass::EndpointIndependent => NatType::EndpointIndependent,
        NatClass::EndpointDependent => NatType::EndpointDependent,
    };
    proto::Nat {
        r#type: kind.into(),
        public_ip: text(view.public_ip),
        port_kept: view.port_kept,
        port_step: view.port_step,
        observers: view.observers,
        udp_blocked: view.udp_blocked,
        summary: summary(view),
    }
}

pub(super) fn own_address(view: AddressView, local: PeerId) -> proto::OwnAddress {
    use proto::AddressSource as Source;
    let source = match view.source {
        AddressSource::Interface => Source::Interface,
        AddressSource::Configured => Source::Configured,
        AddressSource::Observed => Source::Observed,
        AddressSource::Mapped => Source::Mapped,
        AddressSource::Relay => Source::Relay,
    };
    let verdict = match view.verdict {
        Verdict::Unknown => proto::Verdict::Unspecified,
        Verdict::Reachable => proto::Verdict::Reachable,
        Verdict::Unreachable => proto::Verdict::Unreachable,
        Verdict::Assumed => proto::Verdict::Assumed,
    };
    proto::OwnAddress {
        address: with_peer(&view.address, local),
        source: source.into(),
        verdict: verdict.into(),
        verified_by: view.verified_by.iter().map(ToString::to_string).collect(),
        verified_at: view.age.map_or(0, ago),
        advertised: view.advertised,
        detail: view.detail,
    }
}

pub(super) fn mappings(view: &MappingView) -> proto::PortMappings {
    proto::PortMappings {
        gateway: text(view.gateway),
        router: view.router.clone().unwrap_or_default(),
        settled: view.settled,
        ports: view.ports.iter().map(mapping).collect(),
    }
}

fn mapping(view: &PortView) -> proto::PortMapping {
    let mapped = view.mapped.as_ref();
    let protocol = mapped.map_or(proto::MappingProtocol::Unspecified, |mapped| match mapped.method {
        Method::Pcp => proto::MappingProtocol::Pcp,
        Method::NatPmp => proto::MappingProtocol::NatPmp,
        Method::Upnp => proto::MappingProtocol::Upnp,
    });
    let left = |mapped: &Mapped| mapped.expires.saturating_duration_since(Instant::now());
    proto::PortMapping {
        udp: view.transport == Transport::Udp,
        internal_port: view.internal_port.into(),
        protocol: protocol.into(),
        external: text(mapped.map(|mapped| mapped.external)),
        expires_at: mapped.map_or(0, |mapped| ahead(left(mapped))),
        usable: mapped.is_some_and(|mapped| mapped.usable),
        detail: view.detail(),
    }
}

pub(super) fn relay(view: RelayView) -> proto::Relay {
    let state = match view.state {
        RelayState::Spare => proto::RelayState::Spare,
        RelayState::Connecting => proto::RelayState::Connecting,
        RelayState::Reserving => proto::RelayState::Reserving,
        RelayState::Reserved => proto::RelayState::Reserved,
        RelayState::Waiting => proto::RelayState::Waiting,
    };
    proto::Relay {
        peer_id: view.peer.to_string(),
        configured: view.configured,
        addresses: view.addresses.iter().map(|address| with_peer(address, view.peer)).collect(),
        state: state.into(),
        connections: view.connections,
        rtt_ms: float_millis(view.rtt),
        max_circuit_ms: view.max_circuit_duration.map_or(0, millis),
        max_circuit_bytes: view.max_circuit_bytes.unwrap_or(0),
        detail: text(view.trouble),
    }
}

pub(super) fn serving(view: &ServingView) -> proto::Serving {
    let mode = match view.mode {
        Serve::Auto => proto::ServeMode::Auto,
        Serve::On => proto::ServeMode::On,
        Serve::Off => proto::ServeMode::Off,
    };
    let duration = view.max_circuit_duration;
    proto::Serving {
        mode: mode.into(),
        active: view.active,
        reservations: view.reservations,
        max_reservations: view.max_reservations,
        circuits: view.circuits,
        max_circuits: view.max_circuits,
        max_circuits_per_peer: view.max_circuits_per_peer,
        max_circuit_bytes: view.max_circuit_bytes,
        max_circuit_ms: if duration.is_zero() { 0 } else { millis(duration) },
        refused: view.refused,
    }
}

pub(super) fn connection(view: &ConnectionView, peer: PeerId) -> proto::PathConnection {
    proto::PathConnection {
        route: route(Some(view.route)).into(),
        address: with_peer(&view.address, peer),
        dialled: view.dialled,
        age_ms: millis(view.age),
        in_use: view.in_use,
        relay_id: relay_id(view.route, &view.address),
    }
}

pub(super) fn known_address(view: KnownAddressView, peer: PeerId) -> proto::KnownAddress {
    let source = match view.source {
        KnownSource::Lan => proto::KnownSource::Lan,
        KnownSource::Book => proto::KnownSource::Book,
        KnownSource::Worked => proto::KnownSource::Worked,
        KnownSource::Peer => proto::KnownSource::Peer,
        KnownSource::Found => proto::KnownSource::Found,
        KnownSource::Relay => proto::KnownSource::Relay,
    };
    let (outcome, cause) = match view.outcome {
        None => (proto::TryOutcome::Unspecified, String::new()),
        Some(Ok(())) => (proto::TryOutcome::Worked, String::new()),
        Some(Err(cause)) => (proto::TryOutcome::Failed, cause.to_string()),
    };
    proto::KnownAddress {
        address: with_peer(&view.address, peer),
        source: source.into(),
        told_at: ago(view.age),
        tried_at: view.tried.map_or(0, ago),
        outcome: outcome.into(),
        cause,
    }
}

pub(super) fn punch(view: PunchView, peer: PeerId) -> proto::PunchRound {
    let (outcome, address, cause) = match view.outcome {
        None => (proto::TryOutcome::Unspecified, String::new(), String::new()),
        Some(Ok(address)) => (proto::TryOutcome::Worked, with_peer(&address, peer), String::new()),
        Some(Err(cause)) => (proto::TryOutcome::Failed, String::new(), cause),
    };
    proto::PunchRound {
        began_at: ago(view.age),
        round: view.round,
        plan: view.plan,
        addresses: view.addresses.iter().map(|address| with_peer(address, peer)).collect(),
        took_ms: float_millis(view.took),
        outcome: outcome.into(),
        address,
        cause,
    }
}
