//! A POST that carries `Idempotency-Key` is answered once: the same request again gets the same answer, on any gateway, for
//! a day; another request under the same key is refused.
//!
//! An answer may hold a secret, and the store holds none: answers are encrypted with a key made from what the visitor
//! showed and the Idempotency-Key, neither of which is stored.

use super::problem::Problem;
use super::visitor::Visitor;
use crate::clock;
use ledger::{Ledger, Reply};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest, Sha256};

/// The longest key.
const LONGEST: usize = 200;

/// A request that is answered once.
pub(super) struct Once {
    id: String,
    fingerprint: String,
    cipher: [u8; 32],
}

/// What is to be done.
pub(super) enum Turn {
    /// Answer, and keep the answer.
    Answer,
    /// It was answered so.
    Again { status: u16, body: Vec<u8> },
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

impl Once {
    /// # Errors
    /// The key is empty or too long.
    pub(super) fn new(
        (visitor, bearer): (&Visitor, &str),
        key: &str,
        (target, body): (&str, &[u8]),
    ) -> Result<Self, Problem> {
        if key.is_empty() || key.len() > LONGEST {
            return Err(Problem::invalid(format!(
                "`Idempotency-Key` is of 1 to {LONGEST} characters"
            )));
        }
        Ok(Self {
            id: hex(&digest(&[b"reply", &visitor.hash.0, key.as_bytes()])),
            fingerprint: hex(&digest(&[target.as_bytes(), body])),
            cipher: digest(&[b"cipher", bearer.as_bytes(), key.as_bytes()]),
        })
    }

    /// # Errors
    /// It is being answered now, or the key was another request's.
    pub(super) async fn begin(&self, ledger: &Ledger) -> Result<Turn, Problem> {
        match ledger.claim_reply(&self.id, &self.fingerprint).await? {
            Reply::Claimed => Ok(Turn::Answer),
            Reply::Running => {
                let detail = "the same request is being answered now";
                Err(Problem::new(409, "in_progress", detail).hint("try again in a moment"))
            }
            Reply::Different => {
                let detail = "the `Idempotency-Key` was used for another request";
                Err(Problem::new(409, "idempotency_conflict", detail)
                    .hint("every request needs a key of its own"))
            }
            Reply::Known { status, body } => match self.decrypt(&body) {
                Some(body) => Ok(Turn::Again { status, body }),
                None => Err(Problem::new(
                    500,
                    "internal_error",
                    "the answer that was kept cannot be read",
                )),
            },
        }
    }

    /// Keeps an answer; one that blames the gateway is not kept, so that the request can be made again.
    pub(super) async fn end(&self, ledger: &Ledger, status: u16, body: &[u8]) {
        let kept = if status < 500 { self.encrypt(body) } else { None };
        let answer = kept.as_deref().map(|body| (status, body));
        if let Err(error) = ledger.keep_reply(&self.id, answer).await {
            tracing::warn!(%error, "an answer of the admin API could not be kept for a retry");
        }
    }

    fn key(&self) -> Option<LessSafeKey> {
        Some(LessSafeKey::new(
            UnboundKey::new(&AES_256_GCM, &self.cipher).ok()?,
        ))
    }

    fn encrypt(&self, body: &[u8]) -> Option<String> {
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&clock::entropy()[..NONCE_LEN]);
        let mut sealed = body.to_vec();
        self.key()?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed)
            .ok()?;
        Some(hex(&nonce) + &hex(&sealed))
    }

    fn decrypt(&self, kept: &str) -> Option<Vec<u8>> {
        let (nonce, sealed) = kept.split_at_checked(2 * NONCE_LEN)?;
        let nonce: [u8; NONCE_LEN] = unhex(nonce)?.try_into().ok()?;
        let mut sealed = unhex(sealed)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let open = self
            .key()?
            .open_in_place(nonce, Aad::empty(), &mut sealed)
            .ok()?
            .len();
        sealed.truncate(open);
        Some(sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_with_both_keys_alone() {
        let once = |cipher| Once {
            id: String::new(),
            fingerprint: String::new(),
            cipher: [cipher; 32],
        };
        let kept = once(1).encrypt(b"{\"secret\": \"tg_x\"}").unwrap();
        assert!(!kept.contains(&hex(b"tg_x")));
        assert_eq!(once(1).decrypt(&kept).unwrap(), b"{\"secret\": \"tg_x\"}");
        assert_eq!(once(2).decrypt(&kept), None);
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
    }
}
