//! Findings and their table.

use std::fmt::Write;

/// A part of the system and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Name of the part.
    pub part: &'static str,
    /// State of the part.
    pub state: PartState,
}

/// State of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartState {
    /// Available; version and other details.
    Found(String),
    /// Missing or unusable.
    Missing {
        /// The consequence, or the reason why it is unusable.
        effect: String,
        /// A one-line fix.
        fix: String,
        /// Whether this build requires the part for a device it supports.
        needed: bool,
    },
}

impl Finding {
    pub(super) fn found(part: &'static str, details: impl Into<String>) -> Self {
        Self { part, state: PartState::Found(details.into()) }
    }

    /// A missing part that is optional.
    pub(super) fn optional(part: &'static str, effect: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { part, state: PartState::Missing { effect: effect.into(), fix: fix.into(), needed: false } }
    }

    /// A missing part that a feature of this build requires.
    pub(super) fn needed(part: &'static str, effect: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { part, state: PartState::Missing { effect: effect.into(), fix: fix.into(), needed: true } }
    }

    fn is_needed(&self) -> bool {
        matches!(self.state, PartState::Missing { needed: true, .. })
    }
}

/// The findings as a table with one line each, followed by a fix if the part is missing; `!` marks parts required by
/// this build.
pub fn render(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.part.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let mark = if finding.is_needed() { '!' } else { ' ' };
        let (word, details) = match &finding.state {
            PartState::Found(details) => ("found", details),
            PartState::Missing { effect, .. } => ("missing", effect),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{mark} {:width$}  {word:7}  {details}", finding.part);
        if let PartState::Missing { fix, .. } = &finding.state {
            let _ = writeln!(text, "  {:width$}  {:7}  fix: {fix}", "", "");
        }
    }
    let needed: Vec<_> = findings.iter().filter(|finding| finding.is_needed()).map(|finding| finding.part).collect();
    if !needed.is_empty() {
        let _ = writeln!(text, "\n! required by this build: {}", needed.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_lists_fixes_and_marks_required_parts() {
        let findings = [
            Finding::found("CPU", "Example 9000, AVX2"),
            Finding::optional("oneDNN", "convolutions are slower", "apt-get install libdnnl2"),
            Finding::needed("NCCL", "for several GPUs", "apt-get install libnccl2"),
        ];
        assert_eq!(
            render(&findings),
            "  CPU     found    Example 9000, AVX2
  oneDNN  missing  convolutions are slower
                   fix: apt-get install libdnnl2
! NCCL    missing  for several GPUs
                   fix: apt-get install libnccl2

! required by this build: NCCL
"
        );
    }

    #[test]
    fn table_of_a_complete_machine_has_no_marks() {
        assert_eq!(render(&[Finding::found("CPU", "any")]), "  CPU  found    any\n");
        assert_eq!(render(&[]), "");
    }
}
