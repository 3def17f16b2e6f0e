//! Faults as parameters of a URI.

use std::time::Duration;

use super::faults::{Fault, Faults, Operation, RULES_MAX, Rule, When};
use crate::error::IoError;
use crate::uri::{DeviceUri, Parameter, UriError};

/// The errors a fault can be, by the names used in URIs.
pub const ERROR_NAMES: [(&str, IoError); 17] = [
    ("out-of-range", IoError::OutOfRange),
    ("invalid-field", IoError::InvalidField),
    ("unsupported", IoError::Unsupported),
    ("read-only", IoError::ReadOnly),
    ("capacity-exceeded", IoError::CapacityExceeded),
    ("media-read", IoError::MediaRead),
    ("media-write", IoError::MediaWrite),
    ("checksum", IoError::ChecksumMismatch),
    ("compare-failed", IoError::CompareFailed),
    ("reservation", IoError::ReservationConflict),
    ("shortage", IoError::ResourceShortage),
    ("not-ready", IoError::NotReady),
    ("aborted", IoError::Aborted),
    ("timed-out", IoError::TimedOut),
    ("gone", IoError::Gone),
    ("path-down", IoError::PathDown),
    ("internal", IoError::Internal),
];

const OPERATION_NAMES: [(&str, Option<Operation>); 7] = [
    ("read", Some(Operation::Read)),
    ("write", Some(Operation::Write)),
    ("flush", Some(Operation::Flush)),
    ("deallocate", Some(Operation::Deallocate)),
    ("write-zeroes", Some(Operation::WriteZeroes)),
    ("compare", Some(Operation::Compare)),
    ("any", None),
];

/// What a rule looks like, for error messages.
const RULE_PATTERN: &str = "OPERATION.FAULT (operations: read, write, flush, deallocate, write-zeroes, \
    compare, any; faults: error, error-after, delay, stuck, torn, lost, flip)";

const CONDITIONS: &str = "with conditions such as ;probability=0.01, ;blocks=0-99, ;skip=5, ;every=10, \
    ;times=3 or ;nth=7";

/// The faults that a URI describes.
pub(super) fn read(uri: &DeviceUri) -> Result<Faults, UriError> {
    let mut parameters = uri.local_parameters()?;
    let faults = Faults::new(parameters.take("seed")?);
    parameters.leave_inner();
    let given = parameters.take_matching(RULE_PATTERN, |name| name.contains('.'));
    parameters.finish()?;
    let mut rules = Vec::new();
    for (name, value) in given {
        rules.push(read_rule(uri, name, value)?);
    }
    if rules.len() > RULES_MAX {
        return Err(UriError::Value {
            uri: uri.to_string(),
            parameter: RULE_PATTERN.to_owned(),
            value: format!("given {} times", rules.len()),
            expected: format!("given at most {RULES_MAX} times"),
        });
    }
    faults.set(rules);
    Ok(faults)
}

fn read_rule(uri: &DeviceUri, name: &str, value: &str) -> Result<Rule, UriError> {
    let unknown = || UriError::UnknownParameter {
        uri: uri.to_string(),
        parameter: name.to_owned(),
        allowed: vec!["seed", "inner.PARAMETER", RULE_PATTERN],
    };
    let (operation, kind) = name.split_once('.').ok_or_else(unknown)?;
    let (_, operation) = OPERATION_NAMES
        .into_iter()
        .find(|(name, _)| *name == operation)
        .ok_or_else(unknown)?;
    let mut parts = value.split(';');
    let main = parts.next().unwrap_or_default();
    let (fault, expected) = match kind {
        "error" => (read_error(main).map(Fault::Fail), error_names()),
        "error-after" => (read_error(main).map(Fault::FailAfter), error_names()),
        "delay" => (
            read_delay(main).map(|(least, most)| Fault::Delay(least..=most)),
            "a time such as 5ms, or two such as 1ms..5ms".to_owned(),
        ),
        "stuck" => (read_true(main).map(|()| Fault::Stick), "true".to_owned()),
        "lost" => (read_true(main).map(|()| Fault::Lose), "true".to_owned()),
        "torn" => (
            match read_true(main) {
                Some(()) => Some(Fault::Tear(None)),
                None => u64::read(main).map(|sectors| Fault::Tear(Some(sectors))),
            },
            "true, or a number of sectors of 512 bytes".to_owned(),
        ),
        "flip" => (
            u32::read(main).filter(|&bits| bits > 0).map(Fault::Flip),
            "a number of bits, 1 at least".to_owned(),
        ),
        _ => return Err(unknown()),
    };
    let wrong = |expected: String| UriError::Value {
        uri: uri.to_string(),
        parameter: name.to_owned(),
        value: value.to_owned(),
        expected,
    };
    let fault = fault.ok_or_else(|| wrong(format!("{expected}, {CONDITIONS}")))?;
    let mut when = When {
        operations: operation.into_iter().collect(),
        ..When::default()
    };
    for condition in parts {
        when = read_condition(when, condition)
            .ok_or_else(|| wrong(format!("{expected}, {CONDITIONS}: {condition:?} is not one")))?;
    }
    Ok(Rule { when, fault })
}

fn read_condition(when: When, condition: &str) -> Option<When> {
    let (name, value) = condition.split_once('=')?;
    Some(match name {
        "probability" => {
            let probability: f64 = value.parse().ok()?;
            // Not a number is in no range.
            (0.0..=1.0).contains(&probability).then_some(())?;
            when.with_probability(probability)
        }
        "blocks" => {
            let (first, last) = value.split_once('-').unwrap_or((value, value));
            let (first, last) = (u64::read(first)?, u64::read(last)?);
            (first <= last).then(|| when.in_blocks(first..=last))?
        }
        "skip" => When {
            skip: u64::read(value)?,
            ..when
        },
        "every" => When {
            every: u64::read(value).filter(|&every| every > 0)?,
            ..when
        },
        "times" => When {
            times: u64::read(value)?,
            ..when
        },
        "nth" => when.nth(u64::read(value).filter(|&number| number > 0)?),
        _ => return None,
    })
}

fn read_error(text: &str) -> Option<IoError> {
    let (_, error) = ERROR_NAMES.into_iter().find(|(name, _)| *name == text)?;
    Some(error)
}

fn error_names() -> String {
    let names: Vec<_> = ERROR_NAMES.iter().map(|(name, _)| *name).collect();
    format!("one of {}", names.join(", "))
}

fn read_delay(text: &str) -> Option<(Duration, Duration)> {
    let (least, most) = text.split_once("..").unwrap_or((text, text));
    let (least, most) = (Duration::read(least)?, Duration::read(most)?);
    (least <= most).then_some((least, most))
}

fn read_true(text: &str) -> Option<()> {
    (text == "true").then_some(())
}
