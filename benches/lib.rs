//! Benchmarks of the vmi workspace; they are in `side_by_side/`.
