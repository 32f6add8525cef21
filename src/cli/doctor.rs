//! `nnunet-dist doctor`

use super::output::out;
use crate::doctor;

pub(super) fn run() -> anyhow::Result<()> {
    out!("{}", doctor::render(&doctor::examine()));
    Ok(())
}
