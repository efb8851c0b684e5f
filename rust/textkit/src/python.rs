//! How Python prints values: str(), repr(), json.dumps(), str.strip() and str.lower(). Templates are written against CPython,
//! and a prompt that differs by one character from the reference's is another prompt.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::fmt::Write;

/// repr(float): the shortest digits that read back, in exponent form below 1e-4 and from 1e16 on.
pub fn float(v: f64) -> String {
    if v.is_nan() {
        return "nan".into();
    }
    if v.is_infinite() {
        return if v > 0.0 { "inf".into() } else { "-inf".into() };
    }
    if v == 0.0 {
        return if v.is_sign_negative() {
            "-0.0".into()
        } else {
            "0.0".into()
        };
    }
    let scientific = format!("{v:e}"); // d.ddde±x, shortest
    let (mantissa, exponent) = scientific.split_once('e').expect("LowerExp always writes an e");
    let exponent: i32 = exponent.parse().expect("LowerExp writes an integer after the e");
    if (-4..16).contains(&exponent) {
        let plain = format!("{v}"); // Display never uses an exponent
        if plain.contains('.') {
            plain
        } else {
            plain + ".0"
        }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{mantissa}e{sign}{:02}", exponent.abs())
    }
}

fn is_float(v: &Value) -> bool {
    v.kind() == ValueKind::Number && !v.is_integer()
}

fn as_float(v: &Value) -> f64 {
    f64::try_from(v.clone()).unwrap_or(f64::NAN)
}

/// str(value).
pub fn str(v: &Value) -> String {
    match v.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => v.as_str().unwrap_or_default().into(),
        _ => {
            let mut out = String::new();
            write_repr(&mut out, v, 0);
            out
        }
    }
}

const MAX_DEPTH: usize = 200;

fn write_repr(out: &mut String, v: &Value, depth: usize) {
    match v.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::String => write_string_repr(out, v.as_str().unwrap_or_default()),
        ValueKind::Number if is_float(v) => out.push_str(&float(as_float(v))),
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable if depth >= MAX_DEPTH => out.push_str("..."),
        ValueKind::Map => {
            out.push('{');
            for (i, key) in v.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(out, &key, depth + 1);
                out.push_str(": ");
                write_repr(out, &v.get_item(&key).unwrap_or_default(), depth + 1);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, item) in v.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(out, &item, depth + 1);
            }
            out.push(']');
        }
        _ => {
            let _ = write!(out, "{v}"); // True, None, integers: minijinja prints them as Python does
        }
    }
}

/// repr(str): single quotes unless only single quotes occur inside.
fn write_string_repr(out: &mut String, s: &str) {
    let quote = if s.contains('\'') && !s.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in s.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || (0x7f..0xa1).contains(&(c as u32)) || c == '\u{ad}' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// str.isspace() of one character: Unicode's White_Space and the four separators U+001C to U+001F.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The layout arguments of json.dumps.
pub struct Json {
    pub ensure_ascii: bool,
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
}

impl Json {
    pub fn dumps(&self, v: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(&mut out, v, 0)?;
        Ok(out)
    }

    fn write(&self, out: &mut String, v: &Value, depth: usize) -> Result<(), Error> {
        if depth >= MAX_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: nested too deeply"));
        }
        match v.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if v.is_true() { "true" } else { "false" }),
            ValueKind::Number if is_float(v) => out.push_str(&match as_float(v) {
                f if f.is_nan() => "NaN".into(),
                f if f.is_infinite() => {
                    if f > 0.0 {
                        "Infinity".to_string()
                    } else {
                        "-Infinity".to_string()
                    }
                }
                f => float(f),
            }),
            ValueKind::Number => {
                let _ = write!(out, "{v}");
            }
            ValueKind::String => self.write_string(out, v.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let mut keys: Vec<Value> = v.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                out.push('{');
                for (i, key) in keys.iter().enumerate() {
                    self.separate(out, i, depth + 1);
                    self.write_string(out, &str(key));
                    out.push_str(&self.key_separator);
                    self.write(out, &v.get_item(key)?, depth + 1)?;
                }
                self.close(out, keys.is_empty(), depth);
                out.push('}');
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let mut empty = true;
                out.push('[');
                for (i, item) in v.try_iter()?.enumerate() {
                    empty = false;
                    self.separate(out, i, depth + 1);
                    self.write(out, &item, depth + 1)?;
                }
                self.close(out, empty, depth);
                out.push(']');
            }
            kind => {
                let text = format!("tojson: {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, text));
            }
        }
        Ok(())
    }

    fn separate(&self, out: &mut String, i: usize, depth: usize) {
        out.push_str(if i > 0 { &self.item_separator } else { "" });
        self.new_line(out, depth);
    }

    fn close(&self, out: &mut String, empty: bool, depth: usize) {
        if !empty {
            self.new_line(out, depth);
        }
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            for _ in 0..depth {
                out.push_str(indent);
            }
        }
    }

    fn write_string(&self, out: &mut String, s: &str) {
        out.push('"');
        for c in s.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
