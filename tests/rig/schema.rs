//! What the contract says of each topic: the JSON Schemas in daemon/docs/schema.

use std::{collections::HashMap, fs, sync::OnceLock};

use jsonschema::{Registry, Validator};
use serde_json::Value;

use crate::root;

fn validators() -> &'static HashMap<String, Validator> {
    static ALL: OnceLock<HashMap<String, Validator>> = OnceLock::new();
    ALL.get_or_init(|| {
        let folder = root().join("daemon/docs/schema");
        let read = |name: &str| -> Value {
            serde_json::from_slice(&fs::read(folder.join(name)).expect("a schema")).expect("a schema is JSON")
        };
        let envelope = read("envelope.json");
        let id = envelope["$id"].as_str().expect("$id").to_owned();
        let registry = Registry::new().add(id, envelope).expect("envelope").prepare().expect("registry");
        let names =
            fs::read_dir(&folder).expect("schemas").map(|e| e.expect("entry").file_name().into_string().expect("name"));
        let names = names.filter_map(|name| Some(name.strip_prefix("up.")?.strip_suffix(".json")?.to_owned()));
        names
            .map(|kind| {
                let schema = read(&format!("up.{kind}.json"));
                let validator = jsonschema::options().with_registry(&registry).build(&schema).expect("a valid schema");
                (kind, validator)
            })
            .collect()
    })
}

fn one(name: &str) -> Validator {
    let text = fs::read(root().join(format!("daemon/docs/schema/{name}.json"))).expect("a schema");
    let schema: Value = serde_json::from_slice(&text).expect("a schema is JSON");
    jsonschema::options().build(&schema).expect("a valid schema")
}

/// Whether a value is as this schema says.
pub fn fits(name: &str, value: &Value) -> bool {
    one(name).is_valid(value)
}

/// Whether these are arguments of this type of command.
pub fn is_command(kind: &str, args: &Value) -> bool {
    fits(&format!("dn.args.{kind}"), args)
}

/// Types of commands that have a schema.
pub fn commands() -> Vec<String> {
    let files = fs::read_dir(root().join("daemon/docs/schema")).expect("schemas").flatten();
    let names = files.filter_map(|file| file.file_name().into_string().ok());
    names.filter_map(|name| Some(name.strip_prefix("dn.args.")?.strip_suffix(".json")?.to_owned())).collect()
}

/// Every way in which `kentledge status --json` breaks its contract.
pub fn status_problems(status: &Value) -> Vec<String> {
    one("status").iter_errors(status).map(|e| format!("{}: {e}", e.instance_path())).collect()
}

/// Every way in which a message on `up/{stream}` breaks the contract.
pub fn problems(stream: &str, payload: &Value) -> Vec<String> {
    let kind = stream.split('/').next().unwrap_or("");
    match validators().get(kind) {
        None => vec![format!("no schema for up/{stream}")],
        Some(validator) => {
            validator.iter_errors(payload).map(|e| format!("up/{stream}{}: {e}", e.instance_path())).collect()
        }
    }
}

/// The header of an escalated window, of which the values have the size that it says; else nothing.
pub fn header(payload: &[u8]) -> &[u8] {
    let Some((head, rest)) = payload.split_at_checked(8).filter(|(head, _)| head.starts_with(b"KLX1")) else {
        return &[];
    };
    let size = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    let Some((header, values)) = rest.split_at_checked(size).filter(|_| size.is_multiple_of(8)) else { return &[] };
    let parsed: Value = serde_json::from_slice(header).unwrap_or_default();
    let shape = parsed["shape"].as_array().map(|n| n.iter().filter_map(Value::as_u64).product::<u64>());
    if shape == Some(values.len() as u64 / 4) && values.len().is_multiple_of(4) { header } else { &[] }
}
