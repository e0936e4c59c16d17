//! What commands write: reports to stdout, as text or as JSON from the same value; everything else
//! to stderr. Colours and wrapped tables are for terminals alone, so that what is piped is plain.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::styling;
use comfy_table::{Attribute, Cell, ColumnConstraint, ContentArrangement, Table, Width, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::failure::Failure;

/// How reading commands write: for people and, line by line, for scripts; or for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Text,
    Json,
}

/// What a reading command found out.
pub(crate) trait Report: Serialize {
    /// As text, each line ended.
    fn text(&self, style: Style) -> String;
}

/// What a stream can show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Style {
    /// A person looks at it.
    pub(crate) terminal: bool,
    /// It shows colours.
    pub(crate) colour: bool,
    /// The columns of the terminal, where they are known.
    pub(crate) width: Option<u16>,
}

impl Style {
    fn of(stream: &impl IsTerminal) -> Self {
        let terminal = stream.is_terminal();
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { terminal, colour: terminal && !refused, width: None }
    }

    /// The text in a colour, where there are colours.
    pub(crate) fn paint(self, style: styling::Style, text: impl Display) -> String {
        if self.colour { format!("{style}{text}{style:#}") } else { text.to_string() }
    }

    /// The text as a heading.
    pub(crate) fn bold(self, text: impl Display) -> String {
        self.paint(styling::Style::new().bold(), text)
    }
}

/// The colour of what is bad.
pub(crate) const RED: styling::Style = styling::AnsiColor::Red.on_default().bold();
/// The colour of what is doubtful.
pub(crate) const YELLOW: styling::Style = styling::AnsiColor::Yellow.on_default();
/// The colour of what is well.
pub(crate) const GREEN: styling::Style = styling::AnsiColor::Green.on_default();
/// The colour of what is beside the point.
pub(crate) const DIM: styling::Style = styling::Style::new().dimmed();

/// The two streams of the process.
pub(crate) struct Console {
    /// How reports are written.
    pub(crate) format: Format,
    /// What stdout can show.
    pub(crate) out: Style,
    /// What stderr can show.
    pub(crate) err: Style,
}

impl Console {
    /// The streams that the process was given.
    pub(crate) fn of_process(format: Format) -> Self {
        let out = Style { width: Table::new().width(), ..Style::of(&io::stdout()) };
        Self { format, out, err: Style::of(&io::stderr()) }
    }

    /// Writes what a command found out.
    pub(crate) fn report(&self, report: &impl Report) -> Result<(), Failure> {
        match self.format {
            Format::Text => self.text(&report.text(self.out)),
            Format::Json => {
                let json = serde_json::to_string_pretty(report).map_err(io::Error::from)?;
                self.line(json)
            }
        }
    }

    /// Writes one of many reports that follow each other: in JSON, one line each.
    pub(crate) fn report_line(&self, report: &impl Report) -> Result<(), Failure> {
        match self.format {
            Format::Text => self.text(&report.text(self.out)),
            Format::Json => self.line(serde_json::to_string(report).map_err(io::Error::from)?),
        }
    }

    /// Writes a line to stdout.
    pub(crate) fn line(&self, line: impl Display) -> Result<(), Failure> {
        self.text(&format!("{line}\n"))
    }

    fn text(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        Ok(stdout.flush()?)
    }

    /// Says on stderr what is going on.
    pub(crate) fn note(&self, message: impl Display) {
        self.say(&self.err.paint(DIM, message));
    }

    /// Says on stderr what a person would like to know and a script would not.
    pub(crate) fn hint(&self, message: impl Display) {
        if self.out.terminal && self.format == Format::Text {
            self.note(message);
        }
    }

    /// Says on stderr what is doubtful.
    pub(crate) fn warn(&self, message: impl Display) {
        self.say(&format!("{} {message}", self.err.paint(YELLOW, "warning:")));
    }

    /// Says on stderr what went wrong.
    pub(crate) fn error(&self, message: impl Display) {
        self.say(&format!("{} {message}", self.err.paint(RED, "error:")));
    }

    /// Passes on to stderr what another program said.
    pub(crate) fn quote(&self, text: &str) {
        if !text.trim().is_empty() {
            self.say(text.trim_end());
        }
    }

    fn say(&self, message: &str) {
        // Without stderr there is no one to tell.
        drop(writeln!(io::stderr().lock(), "{message}"));
    }
}

/// Says that something takes its time: once when piped, all the time on a terminal until it is
/// dropped.
pub(crate) struct Progress(Option<ProgressBar>);

impl Progress {
    /// Begins to say so.
    pub(crate) fn begin(message: String, console: &Console) -> Self {
        if !console.err.terminal {
            console.note(message);
            return Self(None);
        }
        let bar = ProgressBar::new_spinner().with_message(message);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(Some(bar))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// The blanks after each column of a table.
const PADDING: u16 = 2;

/// The narrowest that a column can be without a break within a word, with what follows it.
fn least_width(header: &[&str], rows: &[Vec<String>], index: usize) -> u16 {
    let cells = rows.iter().filter_map(|row| row.get(index)).map(String::as_str).chain(header.get(index).copied());
    let longest = cells.flat_map(|cell| cell.split(' ')).map(|word| word.chars().count()).max().unwrap_or(0);
    u16::try_from(longest).unwrap_or(u16::MAX).saturating_add(PADDING)
}

/// As [`table`]; where the terminal is too narrow for all columns, those in `spare` are left out, one
/// by one.
pub(crate) fn fitting_table(style: Style, header: &[&str], mut rows: Vec<Vec<String>>, spare: &[&str]) -> String {
    let mut header = header.to_vec();
    for title in spare {
        let least = (0..header.len()).map(|index| least_width(&header, &rows, index)).fold(0, u16::saturating_add);
        if !style.terminal || style.width.is_none_or(|width| least <= width) {
            break;
        }
        if let Some(index) = header.iter().position(|own| own == title) {
            header.remove(index);
            rows.iter_mut().filter(|row| index < row.len()).for_each(|row| drop(row.remove(index)));
        }
    }
    table(style, &header, rows)
}

/// Rows below a header, in columns. On a terminal, cells of several words are wrapped to its width.
pub(crate) fn table(style: Style, header: &[&str], rows: Vec<Vec<String>>) -> String {
    let is_solid = |index: usize| rows.iter().all(|row| row.get(index).is_none_or(|cell| !cell.contains(' ')));
    let constraint = |index: usize| match is_solid(index) {
        true => ColumnConstraint::ContentWidth,
        false => ColumnConstraint::LowerBoundary(Width::Fixed(least_width(header, &rows, index))),
    };
    let constraints: Vec<_> = (0..header.len()).map(constraint).collect();
    let title = |title: &&str| match style.colour {
        true => Cell::new(title).add_attribute(Attribute::Bold),
        false => Cell::new(title),
    };
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().map(title).collect::<Vec<_>>()).add_rows(rows);
    if style.terminal {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_constraints(constraints);
        if let Some(width) = style.width {
            table.set_width(width);
        }
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, PADDING));
    }
    format!("{}\n", table.trim_fmt())
}

/// What others wrote, without what a terminal would obey: one line, control characters escaped.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    Cow::Owned(line)
}

/// The same for a cell of a table; one that is empty is a dash.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { one_line(text).into_owned() }
}

/// The same for texts of several lines, such as a backtrace: further lines are indented.
pub(crate) fn indented(text: &str) -> String {
    text.lines().map(|line| one_line(line.trim_end())).collect::<Vec<_>>().join("\n    ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_plain_when_piped() {
        let rows = vec![vec!["a".into(), "long value".into()], vec!["longer".into(), "b".into()]];
        let text = table(Style::default(), &["X", "Y"], rows);
        assert_eq!(text, "X       Y\na       long value\nlonger  b\n");
    }

    #[test]
    fn a_narrow_terminal_is_shown_fewer_columns_and_whole_words() {
        let shown = |width: u16| {
            let row = ["key", "http-ingress-1, file-log-1", "7"].map(String::from).to_vec();
            let style = Style { terminal: true, width: Some(width), ..Style::default() };
            fitting_table(style, &["ID", "PROVIDERS", "COUNT"], vec![row], &["COUNT"])
        };
        let wide = "ID   PROVIDERS                   COUNT\nkey  http-ingress-1, file-log-1  7\n";
        assert_eq!(shown(60), wide);
        assert_eq!(shown(29), "ID   PROVIDERS        COUNT\nkey  http-ingress-1,  7\n     file-log-1\n");
        assert_eq!(shown(25), "ID   PROVIDERS\nkey  http-ingress-1,\n     file-log-1\n");
    }

    #[test]
    fn colours_are_for_terminals() {
        assert_eq!(Style::default().paint(RED, "x"), "x");
        let painted = Style { terminal: true, colour: true, ..Style::default() }.paint(RED, "x");
        assert!(painted.starts_with('\u{1b}') && painted.ends_with("\u{1b}[0m"), "{painted:?}");
    }

    #[test]
    fn what_others_wrote_cannot_command_the_terminal() {
        assert_eq!(one_line("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(indented("trap\n  at f\r\n  at g\u{7}"), "trap\n      at f\n      at g\\u{7}");
    }
}
