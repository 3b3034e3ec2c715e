//! The C library: a thin layer over the facade crate `vmi`. `include/vmi.h` is made of it by cbindgen; `docs/c.md` is its guide.
//!
//! - **Handles are keys, not addresses** ([`table`]). A handle that is NULL, was closed, was never one or is of another kind is found out by a look-up, and
//!   answered by an error: nothing that C passes as a handle is ever followed.
//! - **Nothing unwinds into C.** Each function runs in [`border::call`], which makes an error of a panic.
//! - **What comes from C has a type that says what C promises** ([`border`]): `Option<&mut MaybeUninit<T>>` for a place that a value is put into (NULL is
//!   `None`), [`border::Text`] for a string, plain numbers for what C could get wrong as an enumeration. Only buffers with a length need an
//!   `unsafe` block at their use.
//! - Objects are `Send + Sync` and counted: closing one in a thread lets calls in other threads end first.
//! - What handles stand for are the owned objects of the facade (`vmi::owned`): machines, guests, memories, pauses, event sessions.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects))]
#![allow(non_camel_case_types, reason = "the names of C")]

pub mod border;
pub mod error;
pub mod event;
pub mod events;
pub mod guest;
pub mod image;
pub mod machine;
pub mod mappings;
pub mod memory;
pub mod options;
pub mod pause;
pub mod processes;
pub mod registers;
pub mod rows;
pub mod snapshot;
pub mod survey;
pub mod symbols;
pub mod system_lists;
pub mod table;
pub mod targets;
pub mod trap;
pub mod types;
pub mod version;
pub mod views;
