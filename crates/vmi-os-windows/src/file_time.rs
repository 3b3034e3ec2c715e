//! Times as Windows keeps them: units of 100 ns since the start of 1601, UTC (`FILETIME` in Microsoft's documentation of the Win32 API).

use core::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds from 1601 to 1970.
const TO_UNIX: u64 = 11_644_473_600;
/// Units in a second.
const UNITS: u64 = 10_000_000;

/// The moment that a file time stands for; `None` for zero, which stands for none, and for one that this machine's clock cannot tell.
pub fn moment(time: u64) -> Option<SystemTime> {
    if time == 0 {
        return None;
    }
    let nanoseconds = time.checked_rem(UNITS)?.checked_mul(100)?;
    let since_1601 = Duration::new(time / UNITS, u32::try_from(nanoseconds).ok()?);
    match since_1601.checked_sub(Duration::from_secs(TO_UNIX)) {
        Some(since_1970) => UNIX_EPOCH.checked_add(since_1970),
        None => UNIX_EPOCH.checked_sub(Duration::from_secs(TO_UNIX).checked_sub(since_1601)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The Win32 documentation gives 116444736000000000 for the start of 1970.
    #[test]
    fn moments_of_the_documentation() {
        assert_eq!(moment(116_444_736_000_000_000), Some(UNIX_EPOCH));
        assert_eq!(moment(116_444_736_000_000_001), Some(UNIX_EPOCH + Duration::from_nanos(100)));
        assert_eq!(moment(1), Some(UNIX_EPOCH - Duration::from_secs(TO_UNIX) + Duration::from_nanos(100)));
        assert_eq!(moment(0), None);
        _ = moment(u64::MAX);
    }
}
