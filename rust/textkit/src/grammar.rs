//! Grammars for structured outputs, by llguidance: which tokens may come next.
//!
//! Everything that reaches this file may be hostile. Texts are limited in size, nesting and repetition before the library
//! sees them, because its parsers recurse and its lexers grow with repetition; the library's own limits bound what is left.

use crate::error::{guard, text, Buffer, Error, Result};
use crate::tokenizer;
use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::earley::{BiasComputer, ParserRecognizer, SlicedBiasComputer};
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{json, Value};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// `TK_GRAMMAR_*` in the header.
const JSON_SCHEMA: i32 = 1;
const REGEX: i32 = 2;
const LARK: i32 = 3;

const MAX_TEXT_BYTES: usize = 256 << 10;
/// Of a grammar, one rule each: an error at the end of a chain of rules takes time by the square of its length.
const MAX_LINES: usize = 10_000;
const STACK_BYTES: usize = 256 << 20; // of addresses; pages are taken as they are touched
/// Brackets inside brackets in a regular expression or a grammar; a schema's nesting is limited by its JSON parser.
const MAX_NESTING: usize = 100;
/// The largest number in a repetition {m,n}.
const MAX_REPEAT: u64 = 10_000;
/// White space between JSON's tokens is a matter of taste, but not without end: small models get lost in it.
const JSON_WHITE_SPACE: &str = r"[ \n\r\t]{1,40}";

pub struct Vocabulary {
    /// Of parsers, which know a control token by its number: `\xff[48]` is what the library takes for token 48.
    factory: ParserFactory,
    /// The control tokens alone, by their names, which is how a grammar may say them.
    names: TokEnv,
    text: Arc<TextMasks>,
    vocab_size: usize,
}

/// The masks of text. The library walks its trie of all tokens, where a terminal that matches bytes that are no UTF-8 (what
/// Lark's `~` leaves does) would take a control token's `\xff` for text; those that a grammar names are added later.
struct TextMasks {
    all: Arc<SlicedBiasComputer>,
    control: SimpleVob,
}

impl BiasComputer for TextMasks {
    fn compute_bias(&self, recognizer: &mut ParserRecognizer<'_>, start: &[u8]) -> SimpleVob {
        let mut mask = self.all.compute_bias(recognizer, start);
        mask.sub(&self.control);
        mask
    }

    fn trie(&self) -> &TokTrie {
        self.all.trie()
    }
}

pub struct Handle {
    matcher: Matcher,
    vocab_size: usize,
}

fn limits() -> ParserLimits {
    ParserLimits {
        // About 1.5 KB each: at most 75 MB for one sequence with the worst of grammars.
        max_lexer_states: 50_000,
        // One mask is work for the thread that computes for everybody: the worst takes 5 to 20 ms over 262,144 ids, a
        // schema's first about 1 ms, its others 20 µs.
        step_lexer_fuel: 50_000,
        step_max_items: 20_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    // The library appends its state in angle brackets, which means nothing to a client.
    let message = error.to_string();
    let message = message.split("\n<non-verbose/>").next().unwrap_or_default();
    if message.starts_with("panic") {
        // How the library says that one of its tables is full.
        return Error::too_large("too large or too complex");
    }
    Error::invalid(message.trim())
}

/// # Safety
/// As the header says of tk_vocabulary_new.
#[no_mangle]
pub unsafe extern "C" fn tk_vocabulary_new(
    source: *const tokenizer::Handle,
    vocab_size: usize,
    stops: *const u32,
    n_stops: usize,
    out: *mut *mut Vocabulary,
    error: *mut Buffer,
) -> i32 {
    guard(error, || {
        let stops = if n_stops == 0 {
            &[]
        } else {
            std::slice::from_raw_parts(stops, n_stops)
        };
        *out = Box::into_raw(Box::new(vocabulary(&*source, vocab_size, stops)?));
        Ok(())
    })
}

fn vocabulary(source: &tokenizer::Handle, vocab_size: usize, stops: &[u32]) -> Result<Vocabulary> {
    let mut words = tokenizer::words(source)?;
    if words.len() > vocab_size {
        return Err(Error::invalid(format!(
            "the tokenizer has {} ids, the model {vocab_size}",
            words.len()
        )));
    }
    if stops.is_empty() || stops.iter().any(|&id| id as usize >= vocab_size) {
        return Err(Error::invalid(format!(
            "stop ids {stops:?}: expected at least one, all below {vocab_size}"
        )));
    }
    words.resize(vocab_size, Vec::new());
    let mut names = vec![Vec::new(); vocab_size];
    let mut control = SimpleVob::alloc_with_capacity(vocab_size, vocab_size + 1); // as the library's masks
    for (id, word) in words.iter_mut().enumerate() {
        if word.len() > 1 && word[0] == TokTrie::SPECIAL_TOKEN_MARKER {
            let number = [&word[..1], format!("[{id}]").as_bytes()].concat();
            names[id] = std::mem::replace(word, number);
            control.allow_token(id as u32);
        }
    }
    let environment = |words: &[Vec<u8>]| -> TokEnv {
        let info = TokRxInfo::new(vocab_size as u32, stops[0]);
        let trie = TokTrie::from(&info, words).with_eos_tokens(stops);
        Arc::new(ApproximateTokEnv::new(trie))
    };
    let slices = SlicedBiasComputer::general_slices();
    let mut factory =
        ParserFactory::new(&environment(&words), InferenceCapabilities::default(), &slices).map_err(failed)?;
    factory.quiet();
    *factory.limits_mut() = limits();
    let text = TextMasks {
        all: factory.slicer(),
        control,
    };
    Ok(Vocabulary {
        factory,
        names: environment(&names),
        text: Arc::new(text),
        vocab_size,
    })
}

/// # Safety
/// As the header says of tk_vocabulary_free.
#[no_mangle]
pub unsafe extern "C" fn tk_vocabulary_free(vocabulary: *mut Vocabulary) {
    if !vocabulary.is_null() {
        drop(Box::from_raw(vocabulary));
    }
}

/// # Safety
/// As the header says of tk_matcher_new.
#[no_mangle]
pub unsafe extern "C" fn tk_matcher_new(
    vocabulary: *const Vocabulary,
    kind: i32,
    data: *const u8,
    size: usize,
    out: *mut *mut Handle,
    error: *mut Buffer,
) -> i32 {
    guard(error, || {
        let vocabulary = &*vocabulary;
        let source = text(data, size, "grammar")?;
        // Rules that refer to rules are compiled by recursion: a stack that the longest chain in a text cannot fill.
        let handle = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, || compile(vocabulary, kind, source))
                .map_err(|e| Error::too_large(format!("no thread to compile the grammar: {e}")))?
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        *out = Box::into_raw(Box::new(handle));
        Ok(())
    })
}

fn compile(vocabulary: &Vocabulary, kind: i32, source: &str) -> Result<Handle> {
    if source.len() > MAX_TEXT_BYTES {
        return Err(Error::too_large(format!(
            "{} bytes long, at most {MAX_TEXT_BYTES} are taken",
            source.len()
        )));
    }
    let grammar = match kind {
        JSON_SCHEMA => TopLevelGrammar::from_json_schema(schema(source)?),
        REGEX => {
            if source.is_empty() {
                return Err(Error::invalid("the regular expression is empty"));
            }
            check_text(source)?;
            TopLevelGrammar::from_regex(source)
        }
        LARK => {
            if source.lines().count() > MAX_LINES {
                return Err(Error::too_large(format!("more than {MAX_LINES} lines")));
            }
            check_text(source)?;
            TopLevelGrammar::from_lark(source.to_string())
        }
        _ => return Err(Error::unsupported(format!("grammar kind {kind}"))),
    };
    let names = Some(vocabulary.names.clone());
    let (grammar, lexer) = catch_unwind(AssertUnwindSafe(|| {
        GrammarInit::Serialized(grammar).to_internal(names, limits())
    }))
    .map_err(failed)?;
    let compiled = GrammarInit::Internal(grammar, lexer);
    let mut parser = vocabulary
        .factory
        .create_parser_from_init_default(compiled)
        .map_err(failed)?;
    parser.bias_computer = vocabulary.text.clone();
    let matcher = Matcher::new(Ok(parser));
    if let Some(error) = matcher.get_error() {
        return Err(failed(error));
    }
    Ok(Handle {
        matcher,
        vocab_size: vocabulary.vocab_size,
    })
}

fn schema(source: &str) -> Result<Value> {
    let mut schema: Value = serde_json::from_str(source).map_err(|e| Error::invalid(format!("not JSON: {e}")))?;
    check_schema(&schema)?;
    match &mut schema {
        Value::Bool(true) => schema = json!({ "x-guidance": { "whitespace_pattern": JSON_WHITE_SPACE } }),
        Value::Object(object) => {
            object
                .entry("x-guidance")
                .or_insert_with(|| json!({ "whitespace_pattern": JSON_WHITE_SPACE }));
        }
        _ => return Err(Error::invalid("a schema must be an object or true")),
    }
    Ok(schema)
}

/// Repetitions in a schema, wherever they stand.
fn check_schema(value: &Value) -> Result<()> {
    match value {
        Value::Object(object) => {
            for (key, inner) in object {
                let repeats = matches!(
                    key.as_str(),
                    "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties"
                );
                match inner.as_u64() {
                    // A wide maximum is cheap where it may as well not be there; a wide minimum never is.
                    Some(count) if repeats && count > MAX_REPEAT && key.starts_with("min") => {
                        return Err(Error::too_large(format!(
                            "{key}: found {count}, at most {MAX_REPEAT} is taken"
                        )));
                    }
                    _ => {}
                }
                if let ("pattern", Value::String(pattern)) = (key.as_str(), inner) {
                    check_text(pattern)?;
                }
                check_schema(inner)?;
            }
        }
        Value::Array(items) => {
            for inner in items {
                check_schema(inner)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Nesting and repetition of a regular expression or grammar. Escapes and literals are not told apart from syntax: a text
/// with a hundred open brackets inside of quotes is refused, too.
fn check_text(source: &str) -> Result<()> {
    let mut depth = 0usize;
    let mut number: Option<u64> = None;
    let mut in_braces = false;
    let mut escaped = false;
    for c in source.chars() {
        if std::mem::take(&mut escaped) {
            continue;
        }
        match c {
            '\\' => escaped = true,
            '(' | '[' => {
                depth += 1;
                if depth > MAX_NESTING {
                    return Err(Error::too_large(format!("nested deeper than {MAX_NESTING} brackets")));
                }
            }
            ')' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        // Only {m,n} is a repetition; other braces hold names or JSON.
        in_braces = c == '{' || (in_braces && (c.is_ascii_digit() || c == ',' || c == ' '));
        number = match c.to_digit(10) {
            Some(digit) if in_braces => {
                let value = number.unwrap_or(0).saturating_mul(10).saturating_add(digit.into());
                if value > MAX_REPEAT {
                    return Err(Error::too_large(format!("a repetition above {MAX_REPEAT}")));
                }
                Some(value)
            }
            _ => None,
        };
    }
    Ok(())
}

/// # Safety
/// As the header says of tk_matcher_clone.
#[no_mangle]
pub unsafe extern "C" fn tk_matcher_clone(matcher: *const Handle, out: *mut *mut Handle, error: *mut Buffer) -> i32 {
    guard(error, || {
        let copy = Handle {
            matcher: (*matcher).matcher.deep_clone(),
            vocab_size: (*matcher).vocab_size,
        };
        *out = Box::into_raw(Box::new(copy));
        Ok(())
    })
}

/// # Safety
/// As the header says of tk_matcher_free.
#[no_mangle]
pub unsafe extern "C" fn tk_matcher_free(matcher: *mut Handle) {
    if !matcher.is_null() {
        drop(Box::from_raw(matcher));
    }
}

/// # Safety
/// As the header says of tk_matcher_mask.
#[no_mangle]
pub unsafe extern "C" fn tk_matcher_mask(
    matcher: *mut Handle,
    words: *mut u32,
    n_words: usize,
    error: *mut Buffer,
) -> i32 {
    guard(error, || {
        let handle = &mut *matcher;
        if n_words != handle.vocab_size.div_ceil(32) {
            return Err(Error::invalid(format!("a mask of {n_words} words")));
        }
        let mask = handle.matcher.compute_mask_or_eos().map_err(failed)?;
        let out = std::slice::from_raw_parts_mut(words, n_words);
        let found = &mask.as_slice()[..n_words.min(mask.as_slice().len())];
        out[..found.len()].copy_from_slice(found);
        out[found.len()..].fill(0);
        // The library may set bits behind the last id.
        let used = handle.vocab_size % 32;
        if used != 0 {
            out[n_words - 1] &= (1u32 << used) - 1;
        }
        Ok(())
    })
}

/// # Safety
/// As the header says of tk_matcher_push.
#[no_mangle]
pub unsafe extern "C" fn tk_matcher_push(matcher: *mut Handle, id: u32, error: *mut Buffer) -> i32 {
    guard(error, || {
        let handle = &mut *matcher;
        if id as usize >= handle.vocab_size {
            return Err(Error::invalid(format!("token {id} is outside of the vocabulary")));
        }
        if handle.matcher.is_stopped() && !handle.matcher.is_error() {
            return Ok(()); // behind the end of the grammar only stop ids are allowed, and they say nothing
        }
        handle.matcher.consume_token(id).map_err(failed)
    })
}

/// # Safety
/// As the header says of tk_matcher_accepts.
#[no_mangle]
pub unsafe extern "C" fn tk_matcher_accepts(matcher: *mut Handle) -> i32 {
    let mut accepts = 0;
    guard(std::ptr::null_mut(), || {
        let handle = &mut *matcher;
        let stopped = handle.matcher.is_stopped() && handle.matcher.stop_reason().is_ok();
        accepts = i32::from(stopped || handle.matcher.is_accepting().unwrap_or(false));
        Ok(())
    });
    accepts
}
