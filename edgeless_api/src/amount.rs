//! Amounts of what a node has and a component may use.
//!
//! Pure: text in, numbers out, and both ways alike, so that what is shown can be written.

use std::fmt;
use std::str::FromStr;

use bytesize::ByteSize;

/// A share of processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpu {
    /// Billionths of a core.
    pub nanos: u64,
}

impl Cpu {
    const CORE: u64 = 1_000_000_000;
    /// The least that the kernel's clock allows.
    const LEAST: u64 = Self::CORE / 100;

    /// From a number of cores.
    pub fn cores(cores: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked by who parses")]
        let nanos = (cores * 1e9).round() as u64;
        Self { nanos }
    }
}

impl FromStr for Cpu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cores: f64 = text.parse().map_err(|_| format!("'{text}' is not a number of cores, such as 0.5"))?;
        let cpu = Self::cores(cores.clamp(0.0, 1e6));
        if cpu.nanos < Self::LEAST {
            return Err(format!("'{text}' cores are too few: 0.01 are the least"));
        }
        Ok(cpu)
    }
}

impl fmt::Display for Cpu {
    #[expect(clippy::cast_precision_loss, reason = "far from the limit of precision")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.nanos as f64 / 1e9)
    }
}

/// A size, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size: ByteSize = text.parse().map_err(|_| format!("'{text}' is not a size, such as 128MiB"))?;
        match size.as_u64() {
            // To an engine it would mean: without limit.
            0 => Err(format!("'{text}' is nothing: 'none' takes a limit away")),
            size => Ok(Self(size)),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.into_iter().find(|(unit, _)| self.0 > 0 && self.0.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// An amount; `none` takes it away.
///
/// # Errors
/// The text is no amount.
pub fn parse<T: FromStr<Err = String>>(text: &str) -> Result<Option<T>, String> {
    match text.trim() {
        "none" => Ok(None),
        text => text.parse().map(Some),
    }
}
