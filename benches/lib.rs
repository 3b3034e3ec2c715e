//! Benchmarks of the vmi workspace; mapped images are in `side_by_side/`, all formats in `images/`, running guests in `live/`.
