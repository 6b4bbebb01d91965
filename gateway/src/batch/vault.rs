//! Prompts and answers that wait: sealed with the operator's key for the store, or kept in this process's memory alone.
//!
//! Invariant: what leaves here for the store is either AES-256-GCM under a fresh nonce, or a token without meaning.

use crate::clock;
use crate::config::Secret;
use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What is sealed is for this use alone.
const USE: &[u8] = b"tollgate job contents 1";

/// Why contents are not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    #[error("the contents cannot be sealed")]
    Seal,
    #[error("the contents were sealed with another key than `batch.content_key`")]
    Key,
    #[error(
        "the contents were in the memory of a gateway that has ended; set `batch.content_key` to keep them in the store"
    )]
    Forgotten,
}

/// Seals and opens.
pub(crate) enum Vault {
    Sealed(Box<LessSafeKey>, SystemRandom),
    Memory {
        kept: Mutex<HashMap<[u8; 16], (Bytes, u64)>>,
        keep_ms: u64,
    },
}

impl Vault {
    /// # Errors
    /// Never in practice: the key is of the right length.
    pub(crate) fn new(key: Option<&Secret>, keep: Duration) -> anyhow::Result<Self> {
        let Some(key) = key else {
            return Ok(Self::Memory {
                kept: Mutex::new(HashMap::new()),
                keep_ms: u64::try_from(keep.as_millis()).unwrap_or(u64::MAX),
            });
        };
        let digest = Sha256::digest([USE, key.expose().as_bytes()].concat());
        let key = UnboundKey::new(&AES_256_GCM, &digest)
            .map_err(|_| anyhow::anyhow!("the content key is of no use"))?;
        Ok(Self::Sealed(Box::new(LessSafeKey::new(key)), SystemRandom::new()))
    }

    /// What stands for the contents in the store.
    pub(crate) fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, VaultError> {
        match self {
            Self::Sealed(key, random) => {
                let mut nonce = [0; NONCE_LEN];
                random.fill(&mut nonce).map_err(|_| VaultError::Seal)?;
                let mut sealed = Vec::with_capacity(NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
                sealed.extend_from_slice(&nonce);
                let mut text = plain.to_vec();
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.seal_in_place_append_tag(nonce, Aad::from(USE), &mut text)
                    .map_err(|_| VaultError::Seal)?;
                sealed.extend_from_slice(&text);
                Ok(sealed)
            }
            Self::Memory { kept, .. } => {
                let mut token = [0; 16];
                token.copy_from_slice(&clock::entropy()[..16]);
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.insert(token, (Bytes::copy_from_slice(plain), clock::monotonic_ms()));
                Ok(token.to_vec())
            }
        }
    }

    /// The contents again.
    pub(crate) fn open(&self, sealed: &[u8]) -> Result<Bytes, VaultError> {
        match self {
            Self::Sealed(key, _) => {
                let (nonce, text) = sealed.split_at_checked(NONCE_LEN).ok_or(VaultError::Key)?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| VaultError::Key)?;
                let mut text = text.to_vec();
                let length = key
                    .open_in_place(nonce, Aad::from(USE), &mut text)
                    .map_err(|_| VaultError::Key)?
                    .len();
                text.truncate(length);
                Ok(text.into())
            }
            Self::Memory { kept, .. } => {
                let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                let found = <[u8; 16]>::try_from(sealed)
                    .ok()
                    .and_then(|token| kept.get(&token));
                found.map(|(plain, _)| plain.clone()).ok_or(VaultError::Forgotten)
            }
        }
    }

    /// Forgets what has been in memory for too long.
    pub(crate) fn sweep(&self) {
        if let Self::Memory { kept, keep_ms } = self {
            let now = clock::monotonic_ms();
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.retain(|_, (_, since)| now.saturating_sub(*since) < *keep_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_alone() {
        let vault = |key: &str| Vault::new(Some(&Secret::plain(key)), Duration::from_secs(1)).unwrap();
        let (one, other) = (vault("a key of some length"), vault("another key, as long"));
        let sealed = one.seal(b"a prompt").unwrap();
        assert!(!sealed.windows(8).any(|part| part == b"a prompt"));
        assert_ne!(sealed, one.seal(b"a prompt").unwrap(), "never the same twice");
        assert_eq!(&one.open(&sealed).unwrap()[..], b"a prompt");
        assert!(matches!(other.open(&sealed), Err(VaultError::Key)));
        let mut broken = sealed;
        broken[20] ^= 1;
        assert!(matches!(one.open(&broken), Err(VaultError::Key)));
    }

    #[test]
    fn without_a_key_nothing_of_the_contents_leaves_the_process() {
        let vault = Vault::new(None, Duration::from_secs(100)).unwrap();
        let token = vault.seal(b"a prompt").unwrap();
        assert_eq!(
            (token.len(), &vault.open(&token).unwrap()[..]),
            (16, &b"a prompt"[..])
        );
        assert!(matches!(vault.open(&[0; 16]), Err(VaultError::Forgotten)));
    }
}
