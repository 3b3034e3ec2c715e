//! Synthetic NT machines: memory images with the structures of Windows kernels, for tests.
//!
//! They are written by code of their own: nothing here is shared with what reads them, but the table of structure offsets.
