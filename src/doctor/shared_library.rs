//! Shared libraries opened by name.

use libloading::{Library, Symbol};

/// A vendor library, kept open to the end of the process: unloading CUDA libraries is not safe.
pub(super) struct SharedLibrary {
    handle: &'static Library,
    /// The name under which it was found.
    pub(super) name: &'static str,
}

impl SharedLibrary {
    /// Opens the first of `names` that the loader finds.
    pub(super) fn open(names: &[&'static str]) -> Option<Self> {
        names.iter().find_map(|&name| {
            // SAFETY: these are vendor libraries, whose initializers may be run by any process.
            let library = unsafe { Library::new(name) }.ok()?;
            Some(Self { handle: Box::leak(Box::new(library)), name })
        })
    }

    /// Looks up a function of the library.
    ///
    /// # Safety
    /// `F` must be the function's type in the vendor's header.
    pub(super) unsafe fn function<F>(&self, name: &str) -> Option<Symbol<'static, F>> {
        // SAFETY: guaranteed by the caller.
        unsafe { self.handle.get(name.as_bytes()) }.ok()
    }
}
