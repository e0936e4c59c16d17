//! Reads JSON files that people write: strict about types and repeated keys, and precise about the
//! place of a mistake. Keys that nobody knows are no mistake by the protocol; they are reported.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error as _, MapAccess, Visitor};

/// Keys that are allowed and have no effect here: for editors, and from older files.
const SILENT: [&str; 2] = ["$schema", "build"];

/// What a file says, and the places of the keys that mean nothing.
pub(crate) struct Parsed<T> {
    pub(crate) value: T,
    pub(crate) unknown: Vec<String>,
}

/// Reads a text; an error begins with line and column, and the JSON path where there is one.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<Parsed<T>, String> {
    let mut unknown = Vec::new();
    let mut note = |path: serde_ignored::Path<'_>| match &path {
        serde_ignored::Path::Map { key, .. } if SILENT.contains(&key.as_str()) => {}
        _ => unknown.push(place(&path)),
    };
    let mut json = serde_json::Deserializer::from_slice(text);
    let watched = serde_ignored::Deserializer::new(&mut json, &mut note);
    let value = serde_path_to_error::deserialize(watched).map_err(|error| {
        let path = error.path().to_string();
        describe(&path, error.inner())
    })?;
    json.end().map_err(|error| describe("", &error))?;
    Ok(Parsed { value, unknown })
}

fn describe(path: &str, error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let reason = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text).replace('`', "'");
    if !error.is_data() {
        return format!("{line}:{column}: this is not JSON: {reason}");
    }
    match path {
        "" | "." | "?" => format!("{line}:{column}: {reason}"),
        path => format!("{line}:{column}: {path}: {reason}"),
    }
}

/// A path such as `functions[0].name`.
fn place(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", place(parent)),
        Path::Map { parent, key } => match place(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => place(parent),
    }
}

/// A map of texts in which no key may be repeated: the second would silently win.
#[derive(Debug, Default)]
pub(crate) struct Texts(pub(crate) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique;

        impl<'de> Visitor<'de> for Unique {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Texts, A::Error> {
                let mut texts = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if texts.contains_key(&key) {
                        return Err(A::Error::custom(format!("the key '{key}' is repeated")));
                    }
                    texts.insert(key, value);
                }
                Ok(Texts(texts))
            }
        }

        deserializer.deserialize_map(Unique)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug)]
    #[expect(dead_code, reason = "only the reading is tested")]
    struct Sample {
        items: Vec<Item>,
    }

    #[derive(serde::Deserialize, Debug)]
    #[expect(dead_code, reason = "only the reading is tested")]
    struct Item {
        name: String,
        #[serde(default)]
        map: Texts,
    }

    fn error(text: &str) -> String {
        parse::<Sample>(text.as_bytes()).map(|parsed| parsed.value).unwrap_err()
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (text, expected) in [
            ("{\"items\": [", "1:11: this is not JSON: EOF while parsing a list"),
            ("{}", "1:2: missing field 'items'"),
            ("{\"items\": [{}]}", "1:13: items[0]: missing field 'name'"),
            ("{\"items\": [{\"name\": 3}]}", "1:21: items[0].name: invalid type: integer '3', expected a string"),
            ("{\"items\": []} x", "1:15: this is not JSON: trailing characters"),
            (
                "{\"items\": [{\"name\": \"a\",\n\"map\": {\"k\": \"1\", \"k\": \"2\"}}]}",
                "2:27: items[0].map: the key 'k' is repeated",
            ),
        ] {
            assert_eq!(error(text), expected, "{text}");
        }
    }

    #[test]
    fn unknown_keys_are_reported_and_ignored() {
        let text = "{\"$schema\": \"x\", \"items\": [{\"name\": \"a\", \"nme\": {}}], \"more\": 1}";
        assert_eq!(parse::<Sample>(text.as_bytes()).unwrap().unknown, ["items[0].nme", "more"]);
    }
}
