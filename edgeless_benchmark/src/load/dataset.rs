//! The output of an experiment as CSV: a row for each request, response and end.
//!
//! Every row is written at once, so that an experiment that is killed leaves what it has found out. An
//! error does not end the experiment, which has workflows to stop; it is kept for [`Dataset::finish`].

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

/// Where rows go; nowhere if no file was asked for.
#[derive(Debug)]
pub(super) struct Dataset {
    file: Option<File>,
    /// The columns that are the same in every row.
    prefix: String,
    failed: Option<io::Error>,
}

/// The columns that the user adds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Additional<'a> {
    pub(super) fields: &'a str,
    pub(super) header: &'a str,
}

impl Dataset {
    /// Makes the file, or goes on with one that has the same header. An empty path is none.
    pub(super) fn open(path: &Path, append: bool, additional: Additional<'_>, seed: u64) -> Result<Self> {
        let Additional { fields, header } = additional;
        let count = |text: &str| if text.is_empty() { 0 } else { text.split(',').count() };
        ensure!(
            count(fields) == count(header),
            "--additional-fields '{fields}' has {} fields, --additional-header '{header}' has {}: give both as many",
            count(fields),
            count(header)
        );
        ensure!(!format!("{fields}{header}").contains(['\n', '\r']), "additional fields must be on one line");
        let comma = if fields.is_empty() { "" } else { "," };
        let prefix = format!("{fields}{comma}{seed},");
        let mut dataset = Self { file: None, prefix, failed: None };
        if !path.as_os_str().is_empty() {
            let header = format!("{header}{comma}seed,timestamp,metric,target,value");
            dataset.file = Some(open(path, append, &header)?);
        }
        Ok(dataset)
    }

    /// Writes one row about the workflow of a number.
    pub(super) fn row(&mut self, at: SystemTime, metric: &str, number: u64, value: &str) {
        let (Some(file), None) = (&mut self.file, &self.failed) else { return };
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, micros) = (since.as_secs(), since.subsec_micros());
        let row = format!("{}{seconds}.{micros:06},{metric},wf{number},{}\n", self.prefix, quoted(value));
        self.failed = file.write_all(row.as_bytes()).err();
    }

    /// Says whether everything was written.
    pub(super) fn finish(self) -> Result<()> {
        self.failed.map_or(Ok(()), |error| Err(error).context("the output is not complete"))
    }
}

fn open(path: &Path, append: bool, header: &str) -> Result<File> {
    let shown = path.display();
    let found =
        if append && path.is_file() { first_line(path).with_context(|| format!("cannot read {shown}"))? } else { None };
    if let Some(found) = &found {
        ensure!(found == header, "{shown} has another header, '{found}': rows with '{header}' do not belong there");
    }
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .append(append)
        .truncate(!append)
        .open(path)
        .with_context(|| format!("cannot write {shown}"))?;
    if found.is_none() {
        writeln!(file, "{header}").with_context(|| format!("cannot write {shown}"))?;
    }
    Ok(file)
}

/// The first line of a file, `None` if it is empty.
fn first_line(path: &Path) -> io::Result<Option<String>> {
    BufReader::new(File::open(path)?).lines().next().transpose()
}

/// A value as RFC 4180 has it, for JSON is full of commas and quotes.
fn quoted(value: &str) -> String {
    match value.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", value.replace('"', "\"\"")),
        false => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ADDITIONAL: Additional<'_> = Additional { fields: "a b,2", header: "name,count" };
    const NONE: Additional<'_> = Additional { fields: "", header: "" };

    fn write(path: &Path, append: bool, additional: Additional<'_>, value: &str) -> Result<()> {
        let mut dataset = Dataset::open(path, append, additional, 42)?;
        dataset.row(UNIX_EPOCH + Duration::from_micros(7_000_012), "workflow:response", 3, value);
        dataset.finish()
    }

    #[test]
    fn rows_are_those_of_the_header() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.csv");
        write(&path, false, ADDITIONAL, r#"{"a":1,"b":2}"#).unwrap();
        write(&path, true, ADDITIONAL, "").unwrap();
        let expected = "name,count,seed,timestamp,metric,target,value\n\
                        a b,2,42,7.000012,workflow:response,wf3,\"{\"\"a\"\":1,\"\"b\"\":2}\"\n\
                        a b,2,42,7.000012,workflow:response,wf3,\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        write(&path, false, NONE, "x").unwrap();
        let expected = "seed,timestamp,metric,target,value\n42,7.000012,workflow:response,wf3,x\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected, "without --append it begins anew");
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.csv");
        let error = write(&path, false, Additional { fields: "a,b", header: "x" }, "").unwrap_err().to_string();
        assert!(error.contains("'a,b' has 2 fields, --additional-header 'x' has 1"), "{error}");
        assert!(!path.exists());
        write(&path, false, NONE, "").unwrap();
        let error = write(&path, true, ADDITIONAL, "").unwrap_err().to_string();
        assert!(error.contains("has another header, 'seed,timestamp,metric,target,value'"), "{error}");
        assert!(write(&directory.path().join("no/out.csv"), false, NONE, "").is_err());
        assert!(write(Path::new(""), false, NONE, "").is_ok(), "no file was asked for");
    }
}
