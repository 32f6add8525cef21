//! HTML page of a run.

use std::time::SystemTime;

use super::html::{Html, document, join, tag, text};
use super::{ReportError, Run, Standing};
use super::{curves, details, headline, overlays, tables, text as words, times};

/// HTML page of a run as of `now`, with pictures of its `worst` worst cases: a single self-contained file.
///
/// # Errors
/// Returns an error if a file of the run is damaged.
pub fn page(run: &Run, worst: usize, now: SystemTime) -> Result<String, ReportError> {
    let standing = Standing::of(run, now);
    let mut sections = vec![("curves", "Curves over the epochs", curves::curves(run))];
    if let Some(summary) = &run.summary {
        sections.push(("validation", "Held-out cases", tables::validation(run, summary)));
        if worst > 0 {
            sections.push(("worst", "Worst cases", overlays::overlays(run, summary, worst)));
        }
    }
    sections.push(("times", "Time breakdown", times::times(run)));
    sections.push(("configuration", "Configuration", details::configuration(run)));
    sections.push(("environment", "Environment", details::environment(run, &standing)));
    sections.push(("incidents", "Incidents", details::incident_list(run, &standing)?));
    sections.push(("checkpoints", "Checkpoints", details::checkpoints(run)));

    let link = |(id, title, _): &(&str, &str, Html)| tag("a", &[("href", &format!("#{id}"))], [text(title)]);
    let links = tag("nav", &[("aria-label", "Sections")], sections.iter().map(link));
    let section = |(id, title, inside)| tag("section", &[("id", id)], [tag("h2", &[], [text(title)]), inside]);
    let body = sections.into_iter().map(section);
    let end = format!("Generated {} by {} {}.", words::time(now), env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    let end = tag("footer", &[], [text(end)]);
    let body = tag("main", &[], [headline::headline(run, &standing), links, join(body), end]);
    Ok(document(&standing.name, include_str!("page.css"), [body]))
}
