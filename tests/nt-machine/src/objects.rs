//! What a running Windows has in memory besides its list of processes: user address spaces, threads, tokens, objects and handles, address descriptors,
//! drivers, the registry.
//!
//! Written from Microsoft's public symbols and documentation and from published descriptions of the structures, by code that shares nothing with the readers.

pub mod directory;
pub mod drivers;
pub mod ground;
pub mod handles;
pub mod header;
pub mod hive;
pub mod hive_cells;
mod machine_ground;
pub mod pages;
pub mod processes;
pub mod spec;
pub mod structures;
#[cfg(test)]
mod tests;
pub mod thread;
pub mod token;
pub mod typical;
pub mod user;
pub mod vad;
