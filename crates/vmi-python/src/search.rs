//! Which operating system is inside, as the layer's own type.

use std::path::PathBuf;

use vmi::{AnyDriver, AttachOptions, Vmi};

use crate::errors::with_causes;
use crate::guest::System;

/// Finds the system. A string says what each was missing.
pub(crate) fn find<'v>(vmi: &'v Vmi<AnyDriver>, symbols: &[PathBuf]) -> Result<System<'v>, String> {
    let known = symbols.iter().try_fold(AttachOptions::new(), AttachOptions::symbols).map_err(|error| with_causes(&error))?;
    match vmi::attach_system(vmi, &known).map_err(|error| with_causes(&error))? {
        vmi::System::Linux(linux) => Ok(linux),
        vmi::System::Windows(windows) => Ok(windows),
        _ => Err("this system has no layer in the Python module".to_owned()),
    }
}
