//! The names of what is measured, and plain tables of at most 100 columns.

use super::load::Figure;

pub(crate) const DURABLE_QUIC: &str = "durable, QUIC";
pub(crate) const DURABLE_TCP: &str = "durable, TCP";
pub(crate) const EPHEMERAL_QUIC: &str = "ephemeral, QUIC";
pub(crate) const EPHEMERAL_TCP: &str = "ephemeral, TCP";
pub(crate) const DURABLE_SINGLE: &str = "durable, QUIC, 1 a frame";
pub(crate) const RAW_GRPC: &str = "raw tonic stream";
pub(crate) const RAW_GRPC_SINGLE: &str = "raw tonic stream, 1 a frame";
pub(crate) const RAW_QUIC: &str = "raw libp2p stream, QUIC";
pub(crate) const RAW_TCP: &str = "raw libp2p stream, TCP";
/// In batches of 1 beside one in flight, of 64 beside many.
pub(crate) const RAW_SQLITE: &str = "raw SQLite appends, 1 or 64";

/// Each product with its baselines.
const PAIRS: [(&str, &str); 12] = [
    (DURABLE_QUIC, RAW_GRPC),
    (DURABLE_QUIC, RAW_QUIC),
    (DURABLE_QUIC, RAW_SQLITE),
    (DURABLE_TCP, RAW_GRPC),
    (DURABLE_TCP, RAW_TCP),
    (DURABLE_TCP, RAW_SQLITE),
    (EPHEMERAL_QUIC, RAW_GRPC),
    (EPHEMERAL_QUIC, RAW_QUIC),
    (EPHEMERAL_TCP, RAW_GRPC),
    (EPHEMERAL_TCP, RAW_TCP),
    (DURABLE_SINGLE, RAW_GRPC_SINGLE),
    (DURABLE_SINGLE, DURABLE_QUIC),
];

/// What the product reaches of each baseline.
pub(crate) fn ratios(figures: &[Figure]) {
    println!("RATIOS of messages a second, app to daemon to daemon to app / baseline");
    println!("  {:<56} {:>14} {:>16}", "", "1 in flight", "1,024 in flight");
    for (product, baseline) in PAIRS {
        let ratio = |in_flight| {
            let rate = |name| find(figures, name, in_flight).map(|figure| figure.median(|taken| taken.rate));
            Some(rate(product)? / rate(baseline)?)
        };
        let (few, many) = (ratio(1), ratio(1024));
        if few.is_some() || many.is_some() {
            let shown = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
            println!("  {:<56} {:>14} {:>16}", format!("{product} / {baseline}"), shown(few), shown(many));
        }
    }
}

/// The medians, with the least and the most of all rounds.
pub(crate) fn figures(figures: &[Figure]) {
    println!("\nFIGURES, 1 KiB messages; times from app to app; \u{2030} of messages refused");
    println!(
        "  {:<28} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6}",
        "", "in fl.", "msg/s", "least", "most", "p50 µs", "p99 µs", "\u{2030}"
    );
    for figure in figures {
        let rates = figure.taken.iter().map(|taken| taken.rate);
        let (least, most) = (rates.clone().fold(f64::INFINITY, f64::min), rates.fold(0.0, f64::max));
        let time = |value: f64| if value > 0.0 { format!("{value:.0}") } else { "-".to_owned() };
        println!(
            "  {:<28} {:>8} {:>9.0} {:>9.0} {:>9.0} {:>9} {:>9} {:>6.1}",
            figure.name,
            figure.in_flight,
            figure.median(|taken| taken.rate),
            least,
            most,
            time(figure.median(|taken| taken.p50)),
            time(figure.median(|taken| taken.p99)),
            figure.median(|taken| taken.refused),
        );
    }
}

fn find<'a>(figures: &'a [Figure], name: &str, in_flight: usize) -> Option<&'a Figure> {
    figures.iter().find(|figure| figure.name == name && figure.in_flight == in_flight)
}
