//! The gdb remote serial protocol, as QEMU speaks it.
