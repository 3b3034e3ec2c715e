//! Fuzz targets of the vmi workspace.
