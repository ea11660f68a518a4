//! What can be wrong with a call.

use core::fmt;

/// Why a call did nothing: which argument, what was found, what is allowed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A matrix has another shape than the call needs.
    Shape {
        /// Name of the argument.
        argument: &'static str,
        /// Its rows and columns.
        found: (usize, usize),
        /// Rows and columns that it must have.
        expected: (usize, usize),
    },
    /// A slice has another length than the call needs.
    Length {
        /// Name of the argument.
        argument: &'static str,
        /// Its length.
        found: usize,
        /// The length that it must have.
        expected: usize,
    },
    /// A number is out of its range.
    Parameter {
        /// Name of the argument.
        argument: &'static str,
        /// Its value.
        value: f64,
        /// The range.
        allowed: &'static str,
    },
    /// Two settings exclude each other.
    Settings {
        /// Name of the setting that has to change.
        argument: &'static str,
        /// Its value.
        value: &'static str,
        /// What would be allowed and why.
        allowed: &'static str,
    },
    /// An argument contains NaN or an infinity.
    NotFinite {
        /// Name of the argument.
        argument: &'static str,
        /// Where.
        row: usize,
        /// Where.
        col: usize,
        /// What.
        value: f64,
    },
    /// A class label is not below the number of outputs.
    Label {
        /// Position in the batch.
        index: usize,
        /// The label.
        label: u32,
        /// Number of classes.
        classes: usize,
    },
    /// The raw parts of a sparse matrix break a rule of its format.
    Pattern {
        /// `"row"`, `"column"` or `"block row"`: what the format compresses.
        line: &'static str,
        /// Which one.
        index: usize,
        /// Which of all indices, or which pointer if a pointer breaks the rule, or which word of a mask.
        position: usize,
        /// What has to hold.
        rule: &'static str,
    },
    /// The environment asks for something that cannot be had.
    Environment {
        /// Name of the variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// States or gradients left the range of numbers. The weights are those of before the step.
    Diverged {
        /// The layer of units, from 1, where it was seen first.
        layer: usize,
        /// The training step, from 1.
        step: u64,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Shape { argument, found, expected } => {
                write!(f, "{argument} is {} × {}, but must be {} × {}", found.0, found.1, expected.0, expected.1)
            }
            Error::Length { argument, found, expected } => write!(f, "{argument} has {found} elements, but must have {expected}"),
            Error::Parameter { argument, value, allowed } => write!(f, "{argument} is {value}, but must be {allowed}"),
            Error::Settings { argument, value, allowed } => write!(f, "{argument} is {value}, but must be {allowed}"),
            Error::NotFinite { argument, row, col, value } => {
                write!(f, "{argument} has {value} at row {row}, column {col}, but must be finite")
            }
            Error::Label { index, label, classes } => {
                write!(f, "label {index} of the batch is {label}, but must be below the {classes} outputs")
            }
            Error::Pattern { line, index, position, rule } => {
                write!(f, "{line} {index} is broken at position {position}: {rule}")
            }
            Error::Environment { variable, value, allowed } => write!(f, "{variable} is {value:?}, but must be {allowed}"),
            Error::Diverged { layer, step } => {
                write!(f, "diverged in layer {layer} at step {step}; the weights are those of before that step")
            }
        }
    }
}

impl core::error::Error for Error {}
