//! What people read: stdout, tables, and words for values.

use std::{
    collections::HashMap,
    fmt::Write as _,
    io::{self, Write as _},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    errors::Failure,
    json::{self, Printed},
};
use crate::proto;

/// Characters of a peer id that tell it from others at a glance. They are the
/// last ones, for all ids begin alike.
const SHORT_ID_CHARS: usize = 8;

/// Where a command's answer goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Out {
    json: bool,
}

impl Out {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether the answer is for a program.
    pub(super) fn json(self) -> bool {
        self.json
    }

    /// Prints a line for people.
    pub(super) fn line(self, line: &str) -> Result<(), Failure> {
        self.bytes(format!("{line}\n").as_bytes())
    }

    /// Prints a message of the API as a line of JSON.
    pub(super) fn object<M: Printed>(self, message: &M) -> Result<(), Failure> {
        self.line(&json::line(message)?)
    }

    /// Prints any value as a line of JSON.
    pub(super) fn value(self, value: &serde_json::Value) -> Result<(), Failure> {
        self.line(&value.to_string())
    }

    /// Prints bytes and flushes them.
    pub(super) fn bytes(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::StdoutClosed,
            _ => Failure::Failed(format!("cannot write to stdout: {error}")),
        })
    }
}

/// Columns aligned with two spaces between them.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    widths: Vec<usize>,
}

impl Table {
    /// A table with a line of headings.
    pub(super) fn new(headings: &[&str]) -> Self {
        let mut table = Self::default();
        table.row(headings.iter().map(ToString::to_string).collect());
        table
    }

    /// Adds a row; what others chose in it is made safe to print.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        let cells: Vec<_> = cells.iter().map(|cell| clean(cell)).collect();
        for (index, cell) in cells.iter().enumerate() {
            let width = cell.chars().count();
            match self.widths.get_mut(index) {
                Some(widest) => *widest = width.max(*widest),
                None => self.widths.push(width),
            }
        }
        self.rows.push(cells);
    }

    /// Takes the rows out as text, and keeps the widths for those to come.
    pub(super) fn take(&mut self) -> String {
        let mut text = String::new();
        for row in self.rows.drain(..) {
            let start = text.len();
            for (cell, &width) in row.iter().zip(&self.widths) {
                // Writing to a string cannot fail.
                let _ = write!(text, "{cell:width$}  ");
            }
            let end = start + text[start..].trim_end().len();
            text.truncate(end);
            text.push('\n');
        }
        text
    }
}

/// Whether a terminal may obey a character instead of showing it: controls
/// (C0, DEL, C1), and marks that reorder or hide the text around them. Joiners
/// stay, for scripts and emoji are written with them.
pub(super) fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{061c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Text that others chose, safe for a terminal and on one line.
pub(super) fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for character in text.chars() {
        if is_unsafe(character) {
            cleaned.extend(character.escape_default());
        } else {
            cleaned.push(character);
        }
    }
    cleaned
}

/// A payload on one line: text as text, all else as its size.
pub(super) fn payload(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => clean(text),
        _ => format!("<{} bytes>", count(bytes.len() as u64)),
    }
}

/// The end of a peer id, with a mark that it is one.
pub(super) fn short_id(peer_id: &str) -> String {
    match peer_id.char_indices().rev().nth(SHORT_ID_CHARS - 1) {
        Some((start, _)) if start > 0 => format!("…{}", &peer_id[start..]),
        _ => peer_id.to_owned(),
    }
}

/// What to call a peer: its alias if it has one.
pub(super) fn peer_name(peer: &proto::Peer) -> String {
    if peer.alias.is_empty() { short_id(&peer.peer_id) } else { peer.alias.clone() }
}

/// Aliases by peer id.
pub(super) type Names = HashMap<String, String>;

/// What to call the peer of an id.
pub(super) fn name_of(peer_id: &str, names: &Names) -> String {
    names.get(peer_id).cloned().unwrap_or_else(|| short_id(peer_id))
}

/// A number with its thousands apart.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number and its noun.
pub(super) fn plural(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A number of bytes in the largest unit that fits.
pub(super) fn bytes(number: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut scaled = number as f64 / 1024.0;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

/// A duration in its two largest units.
pub(super) fn duration(millis: u64) -> String {
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let seconds = millis / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// A round trip; 0 is none measured.
pub(super) fn rtt(millis: f64) -> String {
    if millis > 0.0 { format!("{millis:.2} ms") } else { "-".to_owned() }
}

/// How long ago a time was; 0 is never.
pub(super) fn ago(unix_millis: i64, now: SystemTime) -> String {
    let Ok(then) = u64::try_from(unix_millis) else { return "-".to_owned() };
    if then == 0 {
        return "-".to_owned();
    }
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    format!("{} ago", duration(now.saturating_sub(then)))
}

/// A point in time, UTC.
pub(super) fn time(unix_millis: i64) -> String {
    // The last second that can be written with four digits for the year.
    const LAST: u64 = 253_402_300_799;
    let millis = u64::try_from(unix_millis).unwrap_or(0).min(LAST * 1000);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(millis)).to_string()
}

/// A route in a word.
pub(super) fn route(route: i32) -> String {
    use proto::Route;
    match Route::try_from(route) {
        Ok(Route::Lan) => "LAN".to_owned(),
        Ok(Route::Direct) => "direct".to_owned(),
        Ok(Route::Relayed) => "relayed".to_owned(),
        Ok(Route::None | Route::Unspecified) => "-".to_owned(),
        Err(_) => format!("route {route}"),
    }
}

/// Trust in a word.
pub(super) fn trust(trust: i32) -> String {
    use proto::Trust;
    match Trust::try_from(trust) {
        Ok(Trust::Known) => "known".to_owned(),
        Ok(Trust::Trusted) => "trusted".to_owned(),
        Ok(Trust::Blocked) => "blocked".to_owned(),
        Ok(Trust::Unspecified) => "-".to_owned(),
        Err(_) => format!("trust {trust}"),
    }
}

/// A message's state as the API calls it.
pub(super) fn state(state: i32) -> String {
    proto::MessageState::try_from(state)
        .map_or_else(|_| format!("state {state}"), |state| bare(state.as_str_name(), "MESSAGE_STATE_"))
}

/// A reason as the API calls it; empty if there is none.
pub(super) fn reason(reason: i32) -> String {
    match proto::Reason::try_from(reason) {
        Ok(proto::Reason::Unspecified) => String::new(),
        Ok(reason) => bare(reason.as_str_name(), "REASON_"),
        Err(_) => format!("reason {reason}"),
    }
}

/// The reason and its explanation, as far as there are any, safe to print.
pub(super) fn why(reason: i32, detail: &str) -> String {
    let parts = [self::reason(reason), clean(detail)];
    parts.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(": ")
}

fn bare(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_are_escaped() {
        assert_eq!(clean("a\x1b[31mb\r\n\tc"), "a\\u{1b}[31mb\\r\\n\\tc");
        assert_eq!(clean("\u{9b}\u{202e}"), "\\u{9b}\\u{202e}");
        for text in ["grüße 👋", "👩\u{200d}🔧", "می\u{200c}شود"] {
            assert_eq!(clean(text), text);
        }
    }

    #[test]
    fn payloads_are_text_or_a_size() {
        assert_eq!(payload(b"hi\x07"), "hi\\u{7}");
        assert_eq!(payload(&[0xff; 1500]), "<1,500 bytes>");
        assert_eq!(payload(b"a\0b"), "<3 bytes>");
        assert_eq!(payload(b""), "");
    }

    #[test]
    fn tables_line_up_and_keep_their_widths() {
        let mut table = Table::new(&["A", "LONG"]);
        table.row(vec!["xyz".into(), "1".into()]);
        assert_eq!(table.take(), "A    LONG\nxyz  1\n");
        table.row(vec!["y".into(), "\x1b".into()]);
        assert_eq!(table.take(), "y    \\u{1b}\n");
    }

    #[test]
    fn ids_are_shortened_from_the_end() {
        assert_eq!(short_id("12D3KooWabcdefgh"), "…abcdefgh");
        assert_eq!(short_id("abcdefgh"), "abcdefgh");
        assert_eq!(short_id(""), "");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(plural(1, "message"), "1 message");
        assert_eq!(plural(2000, "message"), "2,000 messages");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(duration(999), "999ms");
        assert_eq!(duration(61_000), "1m 1s");
        assert_eq!(duration(3_600_000), "1h 0m");
        assert_eq!(duration(90_000_000), "1d 1h");
    }

    #[test]
    fn times_never_fail() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(-5), "1970-01-01T00:00:00Z");
        assert_eq!(time(i64::MAX), "9999-12-31T23:59:59Z");
        assert_eq!(ago(0, SystemTime::now()), "-");
        assert_eq!(ago(i64::MAX, SystemTime::now()), "0ms ago");
    }

    #[test]
    fn enums_of_newer_daemons_still_print() {
        assert_eq!(state(99), "state 99");
        assert_eq!(reason(99), "reason 99");
        assert_eq!(route(99), "route 99");
        assert_eq!(trust(99), "trust 99");
        assert_eq!(why(1, "being dialled"), "NOT_CONNECTED: being dialled");
        assert_eq!(why(0, ""), "");
    }
}
