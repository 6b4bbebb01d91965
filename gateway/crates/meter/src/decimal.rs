//! Decimal texts as integer rates: the digits decide, never a float that stands for them.
//!
//! Owns: reading `1.5e-07` exactly. Invariant: what is finer than a pico-dollar is rounded up.

use exchange::Rate;

/// Reads `text`, an amount of US dollars for `units` of what the rate is per, such as `"1.5e-07"` for 1 or `"3.00"` for
/// 1,000,000.
///
/// # Errors
/// It is no decimal number, is negative, or is more than a rate can hold.
pub(crate) fn rate(text: &str, units: u64) -> Result<Rate, String> {
    let malformed = || format!("`{text}` is not an amount of dollars such as 0.15 or 1.5e-07");
    let (mantissa, exponent) = match text.trim().split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().map_err(|_| malformed())?),
        None => (text.trim(), 0),
    };
    if mantissa.starts_with('-') {
        return Err(format!("`{text}`: a price cannot be negative"));
    }
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    let trimmed = digits.trim_end_matches('0');
    if trimmed.is_empty() {
        return Ok(Rate::ZERO);
    }
    let out_of_range = || format!("`{text}` is out of range for a price");
    let number: u128 = trimmed.parse().map_err(|_| out_of_range())?;
    // number × 10^power dollars for `units`; a dollar is 10^12 pico-dollars.
    let dropped = i32::try_from(digits.len() - trimmed.len()).map_err(|_| out_of_range())?;
    let fraction = i32::try_from(fraction.len()).map_err(|_| out_of_range())?;
    let power = exponent
        .checked_sub(fraction)
        .and_then(|power| power.checked_add(dropped + 12))
        .ok_or_else(out_of_range)?;
    let scale = |power: u32| 10u128.checked_pow(power);
    let units = u128::from(units.max(1));
    let picos = if power >= 0 {
        let picos = scale(power.unsigned_abs()).and_then(|scale| number.checked_mul(scale));
        picos.ok_or_else(out_of_range)?.div_ceil(units)
    } else {
        match scale(power.unsigned_abs()).and_then(|scale| scale.checked_mul(units)) {
            Some(divisor) => number.div_ceil(divisor),
            // Far below a pico-dollar, but not nothing.
            None => 1,
        }
    };
    u64::try_from(picos).map(Rate).map_err(|_| out_of_range())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn digits_are_read_exactly() {
        for (text, units, picos) in [
            ("1.5e-07", 1, 150_000),
            ("0.00000015", 1, 150_000),
            ("3", 1_000_000, 3_000_000),
            ("0.15", 1_000_000, 150_000),
            ("3E-6", 1, 3_000_000),
            ("0", 1, 0),
            ("0e9", 1, 0),
            ("100", 1_000_000, 100_000_000),
            ("0.36", 3_600_000, 100_000),
            ("0.01", 1, 10_000_000_000),
            ("1e-13", 1, 1),
            ("1e-300", 1, 1),
            ("0.0000001", 1_000_000, 1),
        ] {
            assert_eq!(rate(text, units), Ok(Rate(picos)), "{text} for {units}");
        }
        for bad in [
            "",
            "x",
            "1,5",
            "-1",
            "-1e-7",
            "1e",
            "1e99",
            "1e999999999999",
            ".",
            "1.2.3",
            "NaN",
            "inf",
        ] {
            assert!(rate(bad, 1).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_float_s_shortest_spelling_is_read_as_the_decimal_it_was_written_as(picos in 1u64..1_000_000_000) {
            // As a price list in JSON has it: dollars per token as a number.
            let dollars = picos as f64 / 1e12;
            let text = serde_json::to_string(&dollars).unwrap();
            prop_assert_eq!(rate(&text, 1), Ok(Rate(picos)));
        }
    }
}
