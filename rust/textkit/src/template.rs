//! Jinja rendering of chat templates, like Transformers does it: trim_blocks, lstrip_blocks, no autoescape, loop controls,
//! tojson, raise_exception, strftime_now and the string methods of Python.

use crate::error::{bytes, guard, text, Buffer, Error, Status};
use crate::python;
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, State};
use std::cmp::Ordering;

type Jinja<T> = std::result::Result<T, minijinja::Error>;

/// Instructions a rendering may take. Long conversations with tools need a few hundred thousand; a hostile one ends in seconds.
const FUEL: u64 = 20_000_000;
const NAME: &str = "chat_template";

pub struct Template {
    env: Environment<'static>,
}

/// # Safety
/// As the header says of tk_template_new.
#[no_mangle]
pub unsafe extern "C" fn tk_template_new(
    source: *const u8,
    size: usize,
    out: *mut *mut Template,
    error: *mut Buffer,
) -> i32 {
    guard(error, || {
        let mut env = environment();
        let source = text(source, size, "chat template")?.to_string();
        env.add_template_owned(NAME, source).map_err(describe)?;
        *out = Box::into_raw(Box::new(Template { env }));
        Ok(())
    })
}

/// # Safety
/// As the header says of tk_template_render.
#[no_mangle]
pub unsafe extern "C" fn tk_template_render(
    template: *const Template,
    context: *const u8,
    size: usize,
    now: i64,
    out: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    guard(error, || {
        let context: serde_json::Value = serde_json::from_slice(bytes(context, size))
            .map_err(|e| Error::invalid(format!("the variables of the chat template are not JSON: {e}")))?;
        let mut env = (*template).env.clone();
        env.add_function("strftime_now", move |format: &str| strftime(format, now));
        let rendered = env
            .get_template(NAME)
            .and_then(|t| t.render(Value::from_serialize(&context)))
            .map_err(describe)?;
        *out = Buffer::from_vec(rendered.into_bytes());
        Ok(())
    })
}

/// # Safety
/// As the header says of tk_template_free.
#[no_mangle]
pub unsafe extern "C" fn tk_template_free(template: *mut Template) {
    if !template.is_null() {
        drop(Box::from_raw(template));
    }
}

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_keep_trailing_newline(false);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_formatter(|out, _, value| out.write_str(&python::str(value)).map_err(Into::into));
    env.set_unknown_method_callback(method);
    env.add_function("raise_exception", |message: Value| -> Jinja<Value> {
        Err(minijinja::Error::new(
            ErrorKind::InvalidOperation,
            python::str(&message),
        ))
    });
    env.add_filter("tojson", tojson);
    env.add_filter("dictsort", dictsort);
    env.add_filter("trim", trim);
    env.add_filter("upper", |v: &Value| python::str(v).to_uppercase());
    env.add_filter("lower", |v: &Value| python::str(v).to_lowercase());
    env.add_filter("string", |v: &Value| python::str(v));
    env.add_filter("join", join);
    // Python counts strings and mappings as sequences, and booleans as numbers.
    env.add_test("sequence", |v: &Value| {
        matches!(
            v.kind(),
            ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Bytes
        )
    });
    env.add_test("number", |v: &Value| {
        matches!(v.kind(), ValueKind::Number | ValueKind::Bool)
    });
    env
}

fn describe(e: minijinja::Error) -> Error {
    let status = if e.kind() == ErrorKind::OutOfFuel {
        Status::TooLarge
    } else {
        Status::Invalid
    };
    let what = match e.kind() {
        ErrorKind::OutOfFuel => format!("rendering took more than {FUEL} steps; shorten the conversation"),
        kind => e.detail().map(str::to_string).unwrap_or_else(|| kind.to_string()),
    };
    let at = e.line().map(|n| format!(", line {n}")).unwrap_or_default();
    Error {
        status,
        message: format!("chat template{at}: {what}"),
    }
}

/// Methods of Python's types: strip and friends with Python's idea of whitespace, the rest from minijinja-contrib.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Jinja<Value> {
    if let (Some(s), true) = (value.as_str(), args.is_empty()) {
        match name {
            "strip" => return Ok(s.trim_matches(python::is_space).into()),
            "lstrip" => return Ok(s.trim_start_matches(python::is_space).into()),
            "rstrip" => return Ok(s.trim_end_matches(python::is_space).into()),
            "split" => {
                return Ok(s
                    .split(python::is_space)
                    .filter(|p| !p.is_empty())
                    .map(Value::from)
                    .collect())
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

fn trim(v: &Value, chars: Option<String>) -> String {
    let s = python::str(v);
    match chars {
        Some(chars) => s.trim_matches(|c| chars.contains(c)).into(),
        None => s.trim_matches(python::is_space).into(),
    }
}

fn join(v: &Value, separator: Option<String>, kwargs: Kwargs) -> Jinja<String> {
    let attribute: Option<String> = kwargs.get("attribute")?;
    kwargs.assert_all_used()?;
    let mut pieces = Vec::new();
    if !v.is_undefined() {
        for item in v.try_iter()? {
            pieces.push(python::str(&match &attribute {
                Some(name) => item.get_attr(name)?,
                None => item,
            }));
        }
    }
    Ok(pieces.join(separator.as_deref().unwrap_or("")))
}

/// Jinja's dictsort: pairs by key (or value), strings compared in lower case unless told otherwise, stable.
fn dictsort(v: &Value, args: Rest<Value>, kwargs: Kwargs) -> Jinja<Value> {
    if v.kind() != ValueKind::Map {
        return Err(minijinja::Error::new(
            ErrorKind::InvalidOperation,
            format!("dictsort: found {}, expected a mapping", v.kind()),
        ));
    }
    let case_sensitive = match args.first() {
        Some(first) => first.is_true(),
        None => kwargs.get::<Option<bool>>("case_sensitive")?.unwrap_or(false),
    };
    let by = match args.get(1) {
        Some(second) => second.as_str().map(str::to_string),
        None => kwargs.get::<Option<String>>("by")?,
    };
    let reverse = kwargs.get::<Option<bool>>("reverse")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let column = if by.as_deref() == Some("value") { 1 } else { 0 };
    let mut rows = Vec::new();
    for key in v.try_iter()? {
        let pair = [key.clone(), v.get_item(&key)?];
        let sort_key = match pair[column].as_str() {
            Some(s) if !case_sensitive => Value::from(s.to_lowercase()),
            _ => pair[column].clone(),
        };
        rows.push((sort_key, pair));
    }
    let order = |a: &Value, b: &Value| -> Ordering {
        match (a.as_str(), b.as_str()) {
            (Some(a), Some(b)) => a.cmp(b),
            _ => a.cmp(b),
        }
    };
    rows.sort_by(|a, b| if reverse { order(&b.0, &a.0) } else { order(&a.0, &b.0) });
    Ok(rows.into_iter().map(|(_, pair)| Value::from(pair.to_vec())).collect())
}

/// json.dumps(value, ensure_ascii=False, …), with the arguments Transformers' filter has.
fn tojson(v: &Value, args: Rest<Value>, kwargs: Kwargs) -> Jinja<String> {
    let given = |i: usize, name: &str| -> Jinja<Option<Value>> {
        let value = match args.get(i) {
            Some(value) => Some(value.clone()),
            None => kwargs.get::<Option<Value>>(name)?,
        };
        Ok(value.filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let ensure_ascii = given(0, "ensure_ascii")?.is_some_and(|v| v.is_true());
    let indent = given(1, "indent")?.map(|v| match v.as_usize() {
        Some(n) => " ".repeat(n.min(64)),
        None => python::str(&v),
    });
    let separators = given(2, "separators")?;
    let sort_keys = given(3, "sort_keys")?.is_some_and(|v| v.is_true());
    kwargs.assert_all_used()?;
    let (mut item_separator, mut key_separator) = (", ".to_string(), ": ".to_string());
    if indent.is_some() {
        item_separator = ",".into();
    }
    if let Some(pair) = separators {
        item_separator = python::str(&pair.get_item_by_index(0)?);
        key_separator = python::str(&pair.get_item_by_index(1)?);
    }
    python::Json {
        ensure_ascii,
        indent,
        item_separator,
        key_separator,
        sort_keys,
    }
    .dumps(v)
}

/// datetime.now().strftime(format), in the machine's time zone and the C locale.
fn strftime(format: &str, now: i64) -> Jinja<String> {
    let invalid = |what: &str| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {what}"));
    if format.is_empty() {
        return Ok(String::new());
    }
    // A mark in front tells an empty result (%p in some locales) from a buffer that is too small.
    let c_format = std::ffi::CString::new(format!("x{format}")).map_err(|_| invalid("NUL in the format"))?;
    let mut out = vec![0u8; 256 + 64 * format.len()];
    let written = unsafe {
        let mut parts: libc::tm = std::mem::zeroed();
        let seconds = now as libc::time_t;
        if libc::localtime_r(&seconds, &mut parts).is_null() {
            return Err(invalid("the time is out of range"));
        }
        libc::strftime(out.as_mut_ptr().cast(), out.len(), c_format.as_ptr(), &parts)
    };
    if written == 0 {
        return Err(invalid("the format is too long"));
    }
    String::from_utf8(out[1..written].to_vec()).map_err(|_| invalid("not UTF-8"))
}
