//! tokenizer.json, by the reference implementation.
//!
//! Special tokens are never looked for here: the caller splits at them (src/text/tokenizer.cc), because it alone knows which
//! text came from a person and which from the template. Added tokens that are not special are text, and are matched.

use crate::error::{bytes, guard, text, Buffer, Error, Result};
use std::collections::HashSet;
use tokenizers::models::bpe::BPE;
use tokenizers::{DecoderWrapper, Model, ModelWrapper, Tokenizer};

/// What a token is to the detokenizer; the header's TK_TOKEN_*.
const HOLE: u8 = 0;
const TEXT: u8 = 1;
const BYTE: u8 = 2;
const SPECIAL: u8 = 4;

pub struct Handle {
    tokenizer: Tokenizer,
    /// The characters behind which text may be cut before a space; None when the tokenizer is not of Gemma's plain make.
    cut_after: Option<HashSet<char>>,
}

const SPACE: char = '▁';

/// # Safety
/// As the header says of tk_tokenizer_new.
#[no_mangle]
pub unsafe extern "C" fn tk_tokenizer_new(
    json: *const u8,
    size: usize,
    out: *mut *mut Handle,
    error: *mut Buffer,
) -> i32 {
    guard(error, || {
        let handle = load(bytes(json, size))?;
        *out = Box::into_raw(Box::new(handle));
        Ok(())
    })
}

fn load(json: &[u8]) -> Result<Handle> {
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(|e| Error::invalid(format!("not a tokenizer: {e}")))?;
    check_decoder(&tokenizer)?;
    for token in tokenizer.get_added_tokens_decoder().values() {
        if token.special && (token.lstrip || token.rstrip || token.single_word) {
            return Err(Error::unsupported(format!(
                "special token {:?} has lstrip, rstrip or single_word set; only plain special tokens are supported",
                token.content
            )));
        }
    }
    // A prompt is never cut or filled up behind the caller's back.
    tokenizer
        .with_truncation(None)
        .map_err(|e| Error::invalid(e.to_string()))?;
    tokenizer.with_padding(None);
    tokenizer.set_encode_special_tokens(true);
    let cut_after = plain_bpe(&tokenizer).map(safe_cuts);
    Ok(Handle { tokenizer, cut_after })
}

/// Gemma's make: spaces become "▁" and BPE runs over the whole, nothing else happens to a text.
fn plain_bpe(tokenizer: &Tokenizer) -> Option<&BPE> {
    let json = |part: serde_json::Result<serde_json::Value>| part.unwrap_or_default();
    let normalizer = json(serde_json::to_value(tokenizer.get_normalizer()));
    if normalizer != serde_json::json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}) {
        return None;
    }
    // After that normalizer no space is left for this one to find.
    let pre_tokenizer = json(serde_json::to_value(tokenizer.get_pre_tokenizer()));
    let no_op = pre_tokenizer["type"] == "Split" && pre_tokenizer["pattern"] == serde_json::json!({"String": " "});
    if !(pre_tokenizer.is_null() || (no_op && pre_tokenizer["invert"] == false)) {
        return None;
    }
    if tokenizer
        .get_added_tokens_decoder()
        .values()
        .any(|token| !token.special)
    {
        return None;
    }
    match tokenizer.get_model() {
        ModelWrapper::BPE(bpe)
            if bpe.dropout.is_none()
                && bpe.continuing_subword_prefix.is_none()
                && bpe.end_of_word_suffix.is_none()
                && !bpe.ignore_merges =>
        {
            Some(bpe)
        }
        _ => None,
    }
}

/// BPE over two halves gives the ids of BPE over the whole when no entry of the vocabulary holds the two characters at the cut
/// side by side, for then no merge can ever reach across. So a text may be cut before a space behind any character that has an
/// entry of its own and stands before a space in no entry (in Gemma's vocabulary ">" does, in one entry).
fn safe_cuts(bpe: &BPE) -> HashSet<char> {
    let vocab = bpe.get_vocab();
    let single = |text: &str| {
        let mut chars = text.chars();
        chars.next().filter(|_| chars.next().is_none())
    };
    let mut safe: HashSet<char> = vocab.keys().filter_map(|text| single(text)).collect();
    if !safe.contains(&SPACE) {
        return HashSet::new();
    }
    for text in vocab.keys() {
        for (at, _) in text.match_indices(SPACE) {
            if let Some(before) = text[..at].chars().next_back() {
                safe.remove(&before);
            }
        }
    }
    safe
}

impl Handle {
    fn encode(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        let Some(cut_after) = &self.cut_after else {
            return Ok(self.tokenizer.encode_fast(text, false)?.get_ids().to_vec());
        };
        // Word by word, each merged in a small heap or found in the library's cache.
        let text = text.replace(' ', "▁");
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut begin = 0;
        let mut before = None;
        for (at, c) in text.char_indices() {
            if c == SPACE && before.is_some_and(|b| cut_after.contains(&b)) {
                self.encode_word(&text[begin..at], &mut ids)?;
                begin = at;
            }
            before = Some(c);
        }
        self.encode_word(&text[begin..], &mut ids)?;
        Ok(ids)
    }

    fn encode_word(&self, word: &str, ids: &mut Vec<u32>) -> tokenizers::Result<()> {
        if !word.is_empty() {
            ids.extend(self.tokenizer.get_model().tokenize(word)?.iter().map(|token| token.id));
        }
        Ok(())
    }
}

/// The token table below is right for one decoder: "▁" becomes a space, byte tokens are joined, nothing else.
fn check_decoder(tokenizer: &Tokenizer) -> Result<()> {
    let found = serde_json::to_value(tokenizer.get_decoder()).unwrap_or_default();
    let plain = match tokenizer.get_decoder() {
        Some(DecoderWrapper::Sequence(s)) => {
            let parts = s.get_decoders();
            let is_space = serde_json::json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
            parts.len() == 3
                && serde_json::to_value(&parts[0]).ok() == Some(is_space)
                && matches!(parts[1], DecoderWrapper::ByteFallback(_))
                && matches!(parts[2], DecoderWrapper::Fuse(_))
        }
        _ => false,
    };
    if plain {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "the tokenizer's decoder is {found}; expected Gemma's Sequence of Replace(▁ by space), ByteFallback, Fuse"
    )))
}

/// # Safety
/// As the header says of tk_tokenizer_free.
#[no_mangle]
pub unsafe extern "C" fn tk_tokenizer_free(tokenizer: *mut Handle) {
    if !tokenizer.is_null() {
        drop(Box::from_raw(tokenizer));
    }
}

/// # Safety
/// As the header says of tk_tokenizer_encode.
#[no_mangle]
pub unsafe extern "C" fn tk_tokenizer_encode(
    tokenizer: *const Handle,
    input: *const u8,
    size: usize,
    ids: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    guard(error, || {
        let input = text(input, size, "text to tokenize")?;
        let found = (*tokenizer)
            .encode(input)
            .map_err(|e| Error::invalid(format!("tokenizing failed: {e}")))?;
        *ids = Buffer::from_vec(found.iter().flat_map(|id| id.to_ne_bytes()).collect());
        Ok(())
    })
}

/// # Safety
/// As the header says of tk_tokenizer_decode.
#[no_mangle]
pub unsafe extern "C" fn tk_tokenizer_decode(
    tokenizer: *const Handle,
    ids: *const u32,
    count: usize,
    skip_special: i32,
    out: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    guard(error, || {
        let ids: &[u32] = if count == 0 {
            &[]
        } else {
            std::slice::from_raw_parts(ids, count)
        };
        let decoded = (*tokenizer)
            .tokenizer
            .decode(ids, skip_special != 0)
            .map_err(|e| Error::invalid(format!("decoding failed: {e}")))?;
        *out = Buffer::from_vec(decoded.into_bytes());
        Ok(())
    })
}

/// # Safety
/// As the header says of tk_tokenizer_id.
#[no_mangle]
pub unsafe extern "C" fn tk_tokenizer_id(tokenizer: *const Handle, token: *const u8, size: usize) -> i64 {
    let mut id = -1;
    guard(std::ptr::null_mut(), || {
        if let Some(found) = (*tokenizer).tokenizer.token_to_id(text(token, size, "token")?) {
            id = i64::from(found);
        }
        Ok(())
    });
    id
}

/// # Safety
/// As the header says of tk_tokenizer_table.
#[no_mangle]
pub unsafe extern "C" fn tk_tokenizer_table(
    tokenizer: *const Handle,
    pieces: *mut Buffer,
    ends: *mut Buffer,
    kinds: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    guard(error, || {
        let table = table(&(*tokenizer).tokenizer)?;
        *pieces = Buffer::from_vec(table.pieces);
        *ends = Buffer::from_vec(table.ends.iter().flat_map(|end| end.to_ne_bytes()).collect());
        *kinds = Buffer::from_vec(table.kinds);
        Ok(())
    })
}

struct Table {
    pieces: Vec<u8>,
    ends: Vec<u32>,
    kinds: Vec<u8>,
}

/// More ids than any vocabulary has; a file that says otherwise would make us allocate a table of its choosing.
const MAX_ID: u32 = 1 << 24;

fn table(tokenizer: &Tokenizer) -> Result<Table> {
    let added = tokenizer.get_added_tokens_decoder();
    let from_model = tokenizer.get_model().get_vocab().into_values().max();
    let last = from_model.max(added.keys().copied().max());
    let count = last.map_or(0, |id| id + 1);
    if count > MAX_ID {
        return Err(Error::too_large(format!(
            "the vocabulary has ids up to {}, the limit is {MAX_ID}",
            count - 1
        )));
    }
    let mut table = Table {
        pieces: Vec::new(),
        ends: Vec::new(),
        kinds: Vec::new(),
    };
    for id in 0..count {
        let special = added.get(&id).is_some_and(|token| token.special);
        let mut kind = HOLE;
        if let Some(token) = tokenizer.id_to_token(id) {
            let token = token.replace('▁', " ");
            kind = match byte_token(&token) {
                Some(byte) => {
                    table.pieces.push(byte);
                    BYTE
                }
                None => {
                    table.pieces.extend_from_slice(token.as_bytes());
                    TEXT
                }
            };
            if special {
                kind |= SPECIAL;
            }
        }
        let end = u32::try_from(table.pieces.len())
            .map_err(|_| Error::too_large("the vocabulary's text is larger than 4 GiB"))?;
        table.ends.push(end);
        table.kinds.push(kind);
    }
    Ok(table)
}

/// What every id prints, as the grammars' trie wants it: nothing for a hole, and a special token's name behind a byte that no
/// text holds, so that text never matches it.
pub fn words(handle: &Handle) -> Result<Vec<Vec<u8>>> {
    let table = table(&handle.tokenizer)?;
    let mut begin = 0;
    let word = |(&end, &kind): (&u32, &u8)| {
        let piece = &table.pieces[std::mem::replace(&mut begin, end as usize)..end as usize];
        match kind {
            HOLE => Vec::new(),
            _ if kind & SPECIAL != 0 => [&[0xff], piece].concat(),
            _ => piece.to_vec(),
        }
    };
    Ok(table.ends.iter().zip(&table.kinds).map(word).collect())
}

/// The reference's own test for a byte token, `<0xHH>`.
fn byte_token(token: &str) -> Option<u8> {
    if token.len() == 6 && token.starts_with("<0x") && token.ends_with('>') {
        u8::from_str_radix(token.get(3..5)?, 16).ok()
    } else {
        None
    }
}
