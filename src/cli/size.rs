//! Sizes as they are written: `65536`, `64KiB`, `1MiB`.

/// The units, in bytes. Those of 1000 have no name here: who writes `64KB` may mean either.
const UNITS: [(&str, usize); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Reads a number of bytes.
///
/// # Errors
/// What a size looks like, or that this one is too large for any machine.
pub(crate) fn parse(text: &str) -> Result<usize, String> {
    let stripped = UNITS.into_iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)));
    let (digits, bytes) = stripped.unwrap_or((text, 1));
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err("it is a number of bytes such as 65536, 64KiB or 1MiB".to_owned());
    }
    let size = digits.parse::<usize>().ok().and_then(|count| count.checked_mul(bytes));
    size.ok_or_else(|| "it is too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_bytes_or_has_a_unit_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65_536),
            ("00012", 12),
            ("1KiB", 1024),
            ("64KiB", 65_536),
            ("1MiB", 1 << 20),
            ("3GiB", 3 << 30),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let no_sizes =
            ["", " ", "KiB", "-1", "+1", "1.5MiB", "64KB", "64K", "64kib", "64 KiB", "1MiB2", "0x10", "²"];
        for text in no_sizes {
            assert!(parse(text).is_err_and(|error| error.contains("64KiB")), "{text}");
        }
        for text in ["99999999999999999999", "18446744073709551615KiB", "17179869184GiB"] {
            assert_eq!(parse(text), Err("it is too large".to_owned()), "{text}");
        }
    }
}
