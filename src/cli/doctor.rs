//! `nnunet-dist doctor`

use crate::doctor;

pub(super) fn run() -> anyhow::Result<()> {
    print!("{}", doctor::render(&doctor::examine()));
    Ok(())
}
