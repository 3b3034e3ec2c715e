//! From the bytes of a file to a parsed image: unpacking, rearranging, finding the format, laying it over its bases.

use std::fs::File;
use std::path::{Path, PathBuf};

use vmi_core::MappedFile;

use crate::format::foreign::Foreign;
use crate::image::{Image, Input};
use crate::source::Source;
use crate::{Compression, Format, FormatError, OpenError, OpenOptions, flattened, layers, unpack};

/// An image with what lies below it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) format: Format,
    /// How the file is packed.
    pub(crate) compression: Option<Compression>,
    pub(crate) image: Image,
}

impl Loaded {
    /// Unpacks and parses `source`, and what the options name as its bases.
    ///
    /// # Errors
    /// Why this is no image that can be read.
    pub(crate) fn load(name: &Path, path: Option<&Path>, source: Source, mut options: OpenOptions) -> Result<Self, OpenError> {
        let compression = match &source {
            Source::Mapped(store) => Compression::of((**store).as_ref()),
            Source::Indexed(_) => None,
        };
        let source = match (&source, compression) {
            (Source::Mapped(packed), Some(compression)) => unpack::open(name, packed, compression, &mut options)?,
            _ => source,
        };
        if source.len() == 0 {
            return Err(OpenError::Empty { path: name.to_owned() });
        }
        let input = Input { source: &source, path, options: &options };
        let arranged = flattened::arrange(input).map_err(|source| OpenError::Flattened { path: name.to_owned(), source })?;
        let input = Input { source: arranged.as_ref().unwrap_or(&source), ..input };
        let format = Self::format(name, input)?;
        let wrong = |source| OpenError::Image { path: name.to_owned(), format, source };
        if let Some(name) = options.snapshot.as_ref().filter(|_| format != Format::Qcow2) {
            let why = format!("this format has no snapshots, and so none called `{}`", name.escape_debug());
            return Err(wrong(FormatError::NoSnapshot(why)));
        }
        let upper = format.parse()(input).map_err(wrong)?;
        let image = match base_options(&upper, options) {
            Some((base, options)) => layers::lay(upper, Self::base(&base, options).map_err(wrong)?.image).map_err(wrong)?,
            None => upper,
        };
        Ok(Self { format, compression, image })
    }

    /// What the user said, or the content, or the files beside it.
    fn format(name: &Path, input: Input<'_>) -> Result<Format, OpenError> {
        if let Some(format) = input.options.format {
            return Ok(format);
        }
        let refuse =
            |foreign: &Foreign| OpenError::NotSupported { path: name.to_owned(), format: foreign.name, advice: foreign.advice };
        Ok(match Format::of(input.source).map_err(refuse)? {
            Format::Raw if input.options.raw_map.is_none() => Format::of_memory_file(input).unwrap_or(Format::Raw),
            format => format,
        })
    }

    fn base(path: &Path, options: OpenOptions) -> Result<Self, FormatError> {
        let open = File::open(path).and_then(|file| MappedFile::new(&file));
        let store = open.map_err(|error| FormatError::Beside { path: path.to_owned(), why: error.to_string() })?;
        Self::load(path, Some(path), Source::mapped(store), options).map_err(|error| FormatError::Base(error.to_string()))
    }
}

/// The nearest base of `upper`, and how it is opened: as `upper`, but with a format of its own.
fn base_options(upper: &Image, mut options: OpenOptions) -> Option<(PathBuf, OpenOptions)> {
    if options.bases.is_empty() {
        return None;
    }
    let base = options.bases.remove(0);
    options.format = None;
    options.snapshot = None;
    options.raw_map = options.raw_map.or_else(|| upper.layout.clone());
    Some((base, options))
}
