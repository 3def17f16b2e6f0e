//! Whether and where spans are sent.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longest name of a service.
const SERVICE_BYTES_MAX: usize = 128;

/// Traces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceSettings {
    /// Where spans are sent by OTLP over gRPC, as `http://HOST:PORT`. Default: nowhere, and there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp: Option<Collector>,
    /// What the process is called in traces (`service.name`). Default: its program.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "service")]
    pub service: Option<String>,
    /// Which part of the traces that begin here is sent, from 0 to 1. One that began elsewhere is sent if it
    /// is there. Default: 1.
    pub sample_ratio: SampleRatio,
}

/// The same on a command line.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct TraceArguments {
    /// Send traces to this collector, by OTLP over gRPC [default: off].
    #[arg(long, value_name = "http://HOST:PORT")]
    pub tracing_otlp: Option<Collector>,

    /// What this process is called in traces [default: the program].
    #[arg(long, value_name = "NAME", value_parser = parse_service)]
    pub tracing_service: Option<String>,

    /// Which part of the traces that begin here is sent, from 0 to 1 [default: 1].
    #[arg(long, value_name = "RATIO")]
    pub tracing_sample_ratio: Option<SampleRatio>,
}

impl TraceArguments {
    /// Overrides settings by what is given.
    pub fn apply(&self, settings: &mut TraceSettings) {
        if self.tracing_otlp.is_some() {
            settings.otlp.clone_from(&self.tracing_otlp);
        }
        if self.tracing_service.is_some() {
            settings.service.clone_from(&self.tracing_service);
        }
        if let Some(ratio) = self.tracing_sample_ratio {
            settings.sample_ratio = ratio;
        }
    }

    /// What is given, and the defaults.
    pub fn settings(&self) -> TraceSettings {
        let mut settings = TraceSettings::default();
        self.apply(&mut settings);
        settings
    }
}

fn parse_service(text: &str) -> Result<String, String> {
    match (1..=SERVICE_BYTES_MAX).contains(&text.len()) {
        true => Ok(text.to_owned()),
        false => Err(format!("give 1 to {SERVICE_BYTES_MAX} bytes")),
    }
}

fn service<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_service(&text).map(Some).map_err(de::Error::custom)
}

/// A text is no collector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no collector of traces: give http://HOST:PORT")]
pub struct CollectorError(String);

/// Where spans are sent: `http://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector(String);

impl Collector {
    /// Its URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for Collector {
    type Err = CollectorError;

    fn from_str(text: &str) -> Result<Self, CollectorError> {
        let wrong = || CollectorError(text.to_owned());
        let uri: http::Uri = text.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let is_root = uri.path_and_query().is_none_or(|path| path.as_str() == "/");
        let is_good = uri.scheme_str() == Some("http")
            && authority.port_u16().is_some_and(|port| port > 0)
            && !authority.host().is_empty()
            // Who calls is not told here: it would be a secret in a setting that is shown.
            && !authority.as_str().contains('@')
            && is_root;
        match is_good {
            true => Ok(Self(text.trim_end_matches('/').to_owned())),
            false => Err(wrong()),
        }
    }
}

impl Serialize for Collector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Collector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A number is no part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no part of all traces: give a number from 0 to 1")]
pub struct SampleRatioError(String);

/// A part of all traces, from 0 to 1, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleRatio(u32);

impl SampleRatio {
    const ALL: u32 = 1_000_000;

    /// This part, rounded to millionths.
    ///
    /// # Errors
    ///
    /// [`SampleRatioError`] if it is not from 0 to 1.
    pub fn new(part: f64) -> Result<Self, SampleRatioError> {
        match (0.0..=1.0).contains(&part) {
            // It is in range.
            true => Ok(Self((part * f64::from(Self::ALL)).round() as u32)),
            false => Err(SampleRatioError(part.to_string())),
        }
    }

    /// As a number from 0 to 1.
    pub fn part(self) -> f64 {
        f64::from(self.0) / f64::from(Self::ALL)
    }
}

impl Default for SampleRatio {
    /// All.
    fn default() -> Self {
        Self(Self::ALL)
    }
}

impl FromStr for SampleRatio {
    type Err = SampleRatioError;

    fn from_str(text: &str) -> Result<Self, SampleRatioError> {
        let part = text.parse().map_err(|_| SampleRatioError(format!("{text:?}")))?;
        Self::new(part)
    }
}

impl Serialize for SampleRatio {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.part())
    }
}

impl<'de> Deserialize<'de> for SampleRatio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Part;

        impl de::Visitor<'_> for Part {
            type Value = SampleRatio;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number from 0 to 1")
            }

            fn visit_f64<E: de::Error>(self, part: f64) -> Result<SampleRatio, E> {
                SampleRatio::new(part).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, part: i64) -> Result<SampleRatio, E> {
                self.visit_f64(part as f64)
            }

            fn visit_u64<E: de::Error>(self, part: u64) -> Result<SampleRatio, E> {
                self.visit_f64(part as f64)
            }
        }

        deserializer.deserialize_any(Part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectors_are_addresses_without_more() {
        for (text, wanted) in [
            ("http://127.0.0.1:4317", "http://127.0.0.1:4317"),
            (
                "http://collector.monitoring:4317/",
                "http://collector.monitoring:4317",
            ),
            ("http://[::1]:4317", "http://[::1]:4317"),
        ] {
            let collector: Collector = text.parse().expect("it is one");
            assert_eq!(collector.as_str(), wanted);
        }
        for text in [
            "",
            "127.0.0.1:4317",
            "https://127.0.0.1:4317",
            "http://127.0.0.1",
            "http://127.0.0.1:0",
            "http://user:secret@127.0.0.1:4317",
            "http://127.0.0.1:4317/v1/traces",
            "http://127.0.0.1:4317/?a=b",
        ] {
            assert!(text.parse::<Collector>().is_err(), "{text}");
        }
    }

    #[test]
    fn parts_are_from_nothing_to_all() {
        for (text, part) in [("0", 0.0), ("1", 1.0), ("0.01", 0.01), ("1e-3", 0.001)] {
            let ratio: SampleRatio = text.parse().expect("it is one");
            assert!((ratio.part() - part).abs() < 1e-9, "{text}");
        }
        for text in ["-0.1", "1.1", "NaN", "inf", "", "half"] {
            assert!(text.parse::<SampleRatio>().is_err(), "{text}");
        }
    }

    #[test]
    fn settings_are_read_and_unknown_keys_refused() {
        let read = |text: &str| serde_json::from_str::<TraceSettings>(text);
        let settings = read(r#"{"otlp": "http://[::1]:4317", "service": "s", "sample_ratio": 0.5}"#);
        let settings = settings.expect("it is good");
        assert_eq!(settings.service.as_deref(), Some("s"));
        assert_eq!(
            settings.sample_ratio,
            SampleRatio::new(0.5).expect("it is a part")
        );
        let text = serde_json::to_string(&settings).expect("it can be written");
        assert_eq!(read(&text).expect("it is good"), settings);
        assert_eq!(read("{}").expect("nothing"), TraceSettings::default());
        assert_eq!(
            read(r#"{"sample_ratio": 1}"#).expect("all"),
            TraceSettings::default()
        );
        for wrong in [
            r#"{"oltp": "http://[::1]:4317"}"#,
            r#"{"otlp": ""}"#,
            r#"{"service": ""}"#,
            r#"{"sample_ratio": 2}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
