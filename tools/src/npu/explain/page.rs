//! The report as one page without anything from elsewhere.

use super::Report;
use crate::model::{Planned, Program};

/// The page.
pub(super) fn page(report: &Report, _planned: &Planned, _programs: &[Program]) -> String {
    format!("<!doctype html><title>{}</title>", report.nodes_total)
}
