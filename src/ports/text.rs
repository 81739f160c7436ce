//! Text of strangers, made fit to be shown.

/// The beginning of a text, with everything that a terminal or a log would
/// act on replaced. At most `most` characters.
pub(super) fn printable(text: &str, most: usize) -> String {
    let shown = |c: char| if c.is_ascii_graphic() || c == ' ' || (c.is_alphanumeric()) { c } else { '?' };
    let mut cleaned: String = text.trim().chars().take(most).map(shown).collect();
    if text.trim().chars().nth(most).is_some() {
        cleaned.push('…');
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_and_direction_marks_do_not_pass() {
        assert_eq!(printable(" FRITZ!Box 7590\u{1b}[2J\u{202e}\n", 64), "FRITZ!Box 7590?[2J?");
        assert_eq!(printable("Küche", 64), "Küche");
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(printable(&"a".repeat(1000), 5), "aaaaa…");
    }
}
