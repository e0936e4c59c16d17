//! What a command found out: one value, shown as a table or as JSON.
//!
//! A figure has its name in JSON, its value and how it is shown in one place, so that the two cannot
//! disagree. The table is Markdown that can be read on a terminal as well.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// The widest column that is aligned.
const WIDEST: usize = 80;

/// What a number counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    PerSecond,
    Seconds,
    Microseconds,
    Milliseconds,
    Kib,
    Mib,
    MbitPerSecond,
    Ratio,
    /// A part of a whole, or a deviation.
    Share,
}

/// A value with its name.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    /// Its name, or that of an object and its name in there: `hogs.loop`.
    key: String,
    value: Value,
    shown: String,
}

impl Figure {
    pub(crate) fn new(key: impl Into<String>, value: f64, unit: Unit) -> Self {
        Self { key: key.into(), value: json!(value), shown: unit.show(value) }
    }

    /// A number of whole things.
    pub(crate) fn count(key: impl Into<String>, value: u64) -> Self {
        Self { key: key.into(), value: json!(value), shown: grouped(value as f64) }
    }

    /// Anything but a number.
    pub(crate) fn other(key: impl Into<String>, value: Value, shown: impl Into<String>) -> Self {
        Self { key: key.into(), value, shown: shown.into() }
    }
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::PerSecond => format!("{}/s", grouped(value)),
            Self::Seconds => format!("{value:.2} s"),
            Self::Microseconds => format!("{value:.1} µs"),
            Self::Milliseconds => format!("{value:.2} ms"),
            Self::Kib => format!("{value:.1} KiB"),
            Self::Mib => format!("{value:.1} MiB"),
            Self::MbitPerSecond => format!("{value:.1} Mbit/s"),
            Self::Ratio => format!("{value:.2}"),
            Self::Share => format!("{value:.3}"),
        }
    }
}

/// A number without fraction, in groups of three digits.
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A line of the table: what was measured, what it stands beside and what it should be.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    what: String,
    measured: Figure,
    limit: Option<Figure>,
    ratio: Option<Figure>,
    aim: &'static str,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, measured: Figure) -> Self {
        Self { what: what.into(), measured, limit: None, ratio: None, aim: "" }
    }

    /// What could at best be reached, and under which name measured / limit is reported.
    pub(crate) fn limit(self, limit: Figure, ratio: &str) -> Self {
        let (measured, most) = (self.measured.value.as_f64(), limit.value.as_f64());
        // A limit of zero could not be measured: there is no ratio to it.
        let known = measured.zip(most).filter(|(_, most)| *most > 0.0);
        let ratio = known.map(|(measured, most)| Figure::new(ratio, measured / most, Unit::Ratio));
        Self { limit: Some(limit), ratio, ..self }
    }

    pub(crate) fn aim(self, aim: &'static str) -> Self {
        Self { aim, ..self }
    }
}

/// All that a command found out.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    command: &'static str,
    rows: Vec<Row>,
    machine: String,
}

impl Report {
    pub(crate) fn new(command: &'static str) -> Self {
        Self { command, rows: Vec::new(), machine: machine() }
    }

    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    fn figures(&self) -> impl Iterator<Item = &Figure> {
        self.rows.iter().flat_map(|row| [Some(&row.measured), row.limit.as_ref(), row.ratio.as_ref()]).flatten()
    }

    /// One object with all figures.
    pub(crate) fn json(&self) -> Value {
        let mut object = Map::new();
        for Figure { key, value, .. } in self.figures() {
            let Some((outer, inner)) = key.split_once('.') else {
                object.insert(key.clone(), value.clone());
                continue;
            };
            if let Value::Object(parts) = object.entry(outer).or_insert_with(|| json!({})) {
                parts.insert(inner.to_string(), value.clone());
            }
        }
        object.insert("machine".into(), json!(self.machine));
        object.insert("debug_build".into(), json!(cfg!(debug_assertions)));
        Value::Object(object)
    }

    /// A table in Markdown, with the columns that have content.
    pub(crate) fn table(&self) -> String {
        let shown = |figure: &Option<Figure>| figure.as_ref().map(|figure| figure.shown.clone()).unwrap_or_default();
        let columns: [(&str, Vec<String>); 5] = [
            ("what", self.rows.iter().map(|row| row.what.clone()).collect()),
            ("measured", self.rows.iter().map(|row| row.measured.shown.clone()).collect()),
            ("limit", self.rows.iter().map(|row| shown(&row.limit)).collect()),
            ("ratio", self.rows.iter().map(|row| shown(&row.ratio)).collect()),
            ("aim", self.rows.iter().map(|row| row.aim.to_string()).collect()),
        ];
        let mut lines = vec![String::from("|"); self.rows.len() + 2];
        for (name, cells) in columns.iter().filter(|(_, cells)| cells.iter().any(|cell| !cell.is_empty())) {
            // A text that is longer than that would make all lines long.
            let longest = cells.iter().map(|cell| cell.chars().count()).filter(|width| *width <= WIDEST);
            let width = longest.fold(name.len(), usize::max);
            let head = [format!(" {name:width$} |"), format!("{:-<1$}|", "", width + 2)];
            let cells = head.into_iter().chain(cells.iter().map(|cell| format!(" {cell:width$} |")));
            for (line, cell) in lines.iter_mut().zip(cells) {
                line.push_str(&cell);
            }
        }
        let mut table = lines.join("\n");
        // A String never fails to be written to.
        write!(table, "\n\nMeasured on {}.", self.machine).ok();
        if cfg!(debug_assertions) {
            table.push_str(" A debug build: the figures mean nothing, `cargo build --release` first.");
        }
        table.push('\n');
        table
    }

    /// Replaces the table of this command in a file.
    pub(crate) fn update(&self, file: &Path) -> Result<()> {
        let begin = format!("<!-- measured:{}:begin -->", self.command);
        let end = format!("<!-- measured:{}:end -->", self.command);
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let marked = text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
        let (before, after) =
            marked.with_context(|| format!("{} lacks the lines {begin} and {end}: add them", file.display()))?;
        std::fs::write(file, format!("{before}{begin}\n{}{end}{after}", self.table()))?;
        Ok(())
    }
}

fn machine() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown processor", |(_, name)| name.trim());
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("{count} cores, {model}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new("ring");
        let limit = Figure::new("limit", 4_000_000.0, Unit::PerSecond);
        report.add(Row::new("hops", Figure::new("hops", 1_000_000.0, Unit::PerSecond)).limit(limit, "ratio"));
        report.add(Row::new("lost", Figure::count("lost", 0)));
        report.add(Row::new("hog", Figure::other("hogs.loop", json!("x"), "stopped")));
        Report { machine: "m".into(), ..report }
    }

    #[test]
    fn table_and_json_tell_the_same() {
        let table = report().table();
        let expected = "| what | measured    | limit       | ratio |\n\
                        |------|-------------|-------------|-------|\n\
                        | hops | 1,000,000/s | 4,000,000/s | 0.25  |\n\
                        | lost | 0           |             |       |\n\
                        | hog  | stopped     |             |       |\n\nMeasured on m.";
        assert!(table.starts_with(expected), "{table}");
        let json = report().json();
        assert_eq!(json["hops"], 1_000_000.0);
        assert_eq!((&json["ratio"], &json["lost"]), (&json!(0.25), &json!(0)));
        assert_eq!(json["hogs"], json!({ "loop": "x" }));
    }

    /// A ratio to nothing would be infinite, which JSON cannot say.
    #[test]
    fn there_is_no_ratio_to_nothing() {
        let nothing = Figure::new("limit", 0.0, Unit::Mib);
        let row = Row::new("x", Figure::new("x", 1.0, Unit::Mib)).limit(nothing, "ratio");
        assert!(row.ratio.is_none());
    }

    #[test]
    fn only_what_is_between_the_marks_of_the_command_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("README.md");
        let (begin, end) = ("<!-- measured:ring:begin -->", "<!-- measured:ring:end -->");
        let others = "<!-- measured:http:begin -->\nold\n<!-- measured:http:end -->\n";
        std::fs::write(&file, format!("{others}{begin}\nold\n{end}\nb")).unwrap();
        report().update(&file).unwrap();
        let expected = format!("{others}{begin}\n{}{end}\nb", report().table());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), expected);
        std::fs::write(&file, "no marks").unwrap();
        assert!(report().update(&file).is_err());
    }
}
