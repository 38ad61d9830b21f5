//! Sizes as people write them: `4GiB`, `512M`, `1048576`.

/// Parses a number of bytes with an optional unit. Units of 1024: `K M G T P E`, each with or without `iB`; of 1000:
/// `KB MB … EB`. Case does not matter. A fraction is allowed with a unit (`1.5G`).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = |why: &str| format!("{text:?} is no size: {why}; write for example 512MiB, 4G or 1048576");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let multiplier: u64 = match unit.as_str() {
        "" | "b" => 1,
        _ => {
            let prefix = unit.chars().next().and_then(|prefix| "kmgtpe".find(prefix));
            let power = prefix.ok_or_else(|| wrong("unknown unit"))? as u32 + 1;
            match &unit[1..] {
                "" | "ib" => 1024u64.pow(power),
                "b" => 1000u64.pow(power),
                _ => return Err(wrong("unknown unit")),
            }
        }
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(multiplier).ok_or_else(|| wrong("it exceeds 64 bits"));
    }
    if multiplier == 1 {
        return Err(wrong("bytes are whole"));
    }
    match number.parse::<f64>() {
        Ok(value) if value * (multiplier as f64) < u64::MAX as f64 => Ok((value * multiplier as f64) as u64),
        _ => Err(wrong("the number cannot be read")),
    }
}

/// Writes a number of bytes with the largest binary unit that leaves at least 1, and three digits.
pub fn show_size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match value {
        _ if unit == 0 => format!("{bytes} B"),
        v if v < 10.0 => format!("{v:.2} {}", UNITS[unit]),
        v if v < 100.0 => format!("{v:.1} {}", UNITS[unit]),
        v => format!("{v:.0} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("4G", 4 << 30),
            ("4GiB", 4 << 30),
            ("4 gib", 4 << 30),
            ("1.5k", 1536),
            ("2GB", 2_000_000_000),
            ("16P", 16 << 50),
            ("15E", 15 << 60),
            ("7b", 7),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "1.5", "-1", "4X", "4GiBB", "1e3", "99999999P", "16E", "1..5G", "½G", "4€"] {
            assert!(parse_size(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn sizes_are_written() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (10 << 20, "10.0 MiB"), (u64::MAX, "16.0 EiB")]
        {
            assert_eq!(show_size(bytes), text);
        }
    }
}
