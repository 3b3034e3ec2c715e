//! The `pmemaccess` socket of a patched QEMU.
