//! Proves each kind of site before anything is measured on it.

use std::{collections::BTreeMap, net::IpAddr, sync::Mutex, time::Duration};

use clap::ValueEnum as _;

use crate::{
    kind::{Filtering, Igd, Kind, Mapping},
    lab::Lab,
    plan,
    probe::{Ports, RTT, Seen, events, probe},
};

/// How much longer than planned a round trip may take on a busy machine.
const LATE: Duration = Duration::from_millis(60);
/// Least spread of random ports: six within this would be chance once in
/// thousands of runs.
const SPREAD: u16 = 40;
/// Size of the carrier's block.
const BLOCK: u16 = 2048;

/// Proves these, several at once, and prints the table. Says whether all are
/// what they should be.
pub(crate) fn prove(kinds: &[Kind], labs: usize) -> bool {
    let mut work: Vec<(Kind, bool)> = kinds.iter().map(|kind| (*kind, false)).collect();
    work.extend(kinds.iter().filter(|kind| kind.takes_hairpin()).map(|kind| (*kind, true)));
    work.sort();
    let (queue, seen) = (Mutex::new(work.iter()), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..labs {
            scope.spawn(|| {
                let lab = Lab::new();
                loop {
                    let Some(&(kind, hairpin)) = queue.lock().unwrap().next() else { break };
                    let one = probe(&lab, kind, hairpin);
                    seen.lock().unwrap().insert((kind, hairpin), one);
                }
            });
        }
    });
    let seen = seen.into_inner().unwrap();
    println!(
        "{:<32} {:<14} {:<14} {:<13} {:<11} {:<8} {:<4} {:<5} {:>7}  proven",
        "site", "outer address", "ports", "lets in", "unsolicited", "hairpin", "tcp", "maps", "rtt ms"
    );
    let mut proven = seen.len() == work.len();
    for ((kind, hairpin), seen) in &seen {
        let wrong = differences(*kind, *hairpin, seen);
        proven &= wrong.is_empty();
        println!(
            "{} {}",
            row(*kind, *hairpin, seen),
            if wrong.is_empty() { "yes".to_owned() } else { wrong.join("; ") }
        );
    }
    for (event, happens) in events(&Lab::new()) {
        println!("event: {event:<24} {}", if happens { "proven" } else { "NOT AS IT SHOULD BE" });
        proven &= happens;
    }
    proven
}

/// All kinds.
pub(crate) fn all() -> Vec<Kind> {
    Kind::value_variants().to_vec()
}

/// What is not as the kind promises.
fn differences(kind: Kind, hairpin: bool, seen: &Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |what: &str, ok: bool| {
        if !ok {
            wrong.push(format!("{what}: {seen:?}"));
        }
    };
    let udp = kind.udp();
    let ports = match (&seen.ports, kind.mapping()) {
        (Ports::Silent, _) => !udp,
        (Ports::Kept, Mapping::Kept) | (Ports::Changed, Mapping::Changed) | (Ports::PlusOne, Mapping::PlusOne) => udp,
        (Ports::Random(within), Mapping::Random) => udp && *within > BLOCK,
        (Ports::Random(within), Mapping::Block) => udp && (SPREAD..BLOCK).contains(within),
        _ => false,
    };
    check("ports", ports);
    check("outer address", seen.outer.is_some_and(is_public) == udp);
    check("filtering", seen.filtering == udp.then_some(kind.filtering()));
    check("unsolicited", seen.unsolicited == kind.is_public());
    // The firewall's hosts speak to each other without it.
    let expected = (!kind.is_public()).then_some(hairpin || kind.is_v6());
    check("hairpin", kind.is_v6() || seen.hairpin == expected);
    check("tcp", seen.tcp);
    check("mappings", seen.mapped == kind.igd().into_iter().collect::<Vec<Igd>>());
    check("delay", seen.rtt.is_none_or(|rtt| rtt >= RTT && rtt < RTT + LATE));
    wrong
}

fn is_public(ip: IpAddr) -> bool {
    plan::site_of(ip).is_some()
}

fn row(kind: Kind, hairpin: bool, seen: &Seen) -> String {
    let yes = |is: bool| if is { "yes" } else { "no" };
    let name = kind.name() + if hairpin { " +hairpin" } else { "" };
    let ports = match &seen.ports {
        Ports::Silent => "-".to_owned(),
        Ports::Kept => "kept".to_owned(),
        Ports::Changed => "changed".to_owned(),
        Ports::PlusOne => "+1".to_owned(),
        Ports::Random(within) => format!("random/{within}"),
    };
    let filtering = match seen.filtering {
        None => "-",
        Some(Filtering::None) => "everyone",
        Some(Filtering::Address) => "address",
        Some(Filtering::AddressAndPort) => "address+port",
    };
    let maps: Vec<_> = seen.mapped.iter().map(|igd| format!("{igd:?}").to_lowercase()).collect();
    let rtt = seen.rtt.map_or("-".to_owned(), |rtt| format!("{:.1}", rtt.as_secs_f64() * 1000.0));
    format!(
        "{name:<32} {:<14} {ports:<14} {filtering:<13} {:<11} {:<8} {:<4} {:<5} {rtt:>7} ",
        seen.outer.map_or("-".to_owned(), |ip| ip.to_string()),
        yes(seen.unsolicited),
        seen.hairpin.map_or("-", yes),
        yes(seen.tcp),
        if maps.is_empty() { "-".to_owned() } else { maps.join(",") },
    )
}
