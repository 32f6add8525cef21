//! Charts and pictures of cases.

pub mod chart;
mod glyphs;
pub mod inspect;
