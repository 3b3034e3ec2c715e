//! Benchmarks of the vmi workspace; images are in `side_by_side/`, running guests in `live/`.
