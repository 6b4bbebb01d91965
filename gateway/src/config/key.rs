//! Gateway keys: made from entropy, shown once, kept as a hash.

use exchange::KeyHash;
use sha2::{Digest, Sha256};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A key as its holder sees it: `tg_` and 43 characters of base64url.
pub(crate) fn format(entropy: [u8; 32]) -> String {
    let mut key = String::from("tg_");
    let (mut bits, mut count) = (0u32, 0);
    for byte in entropy {
        bits = bits << 8 | u32::from(byte);
        count += 8;
        while count >= 6 {
            count -= 6;
            key.push(ALPHABET[(bits >> count) as usize & 63] as char);
        }
    }
    key.push(ALPHABET[(bits << (6 - count)) as usize & 63] as char);
    key
}

/// The line that stands for it in the configuration.
pub(crate) fn hash_line(key: &str) -> String {
    format!(
        "sha256:{}",
        KeyHash(Sha256::digest(key.as_bytes()).into()).to_hex()
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_key_has_43_characters_of_entropy() {
        let key = super::format([0xff; 32]);
        assert_eq!(key.len(), 46);
        assert!(key.starts_with("tg___") && key.ends_with('8'), "{key}");
        assert_ne!(super::format([1; 32]), super::format([2; 32]));
    }
}
