//! Names of Windows versions by build.

/// The name of the release with this build: `Windows 10 19041`, `Windows XP 2600`. A build between two releases, as of previews and service packs, has
/// the name of the one before.
///
/// Builds are those of Microsoft's lists "Operating System Version" (Win32 documentation), "Windows 10 release information", "Windows 11 release information" and
/// "Windows Server release information". Clients and servers share builds: where only a server was published with a build, it has the server's name.
pub(crate) fn name(build: u32) -> String {
    const RELEASES: [(u32, &str); 12] = [
        (2195, "Windows 2000"),
        (2600, "Windows XP"),
        (3790, "Windows Server 2003"),
        (6000, "Windows Vista"),
        (7600, "Windows 7"),
        (9200, "Windows 8"),
        (9600, "Windows 8.1"),
        (10240, "Windows 10"),
        (20348, "Windows Server 2022"),
        (22000, "Windows 11"),
        (25398, "Windows Server 2022 23H2"),
        (26100, "Windows 11"),
    ];
    let name = RELEASES.iter().take_while(|(first, _)| *first <= build).last().map_or("Windows", |(_, name)| name);
    format!("{name} {build}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_of_the_lists() {
        for (build, expected) in [
            (2600, "Windows XP 2600"),
            (3790, "Windows Server 2003 3790"),
            (6002, "Windows Vista 6002"),
            (7601, "Windows 7 7601"),
            (9600, "Windows 8.1 9600"),
            (10240, "Windows 10 10240"),
            (19041, "Windows 10 19041"),
            (19045, "Windows 10 19045"),
            (20348, "Windows Server 2022 20348"),
            (22631, "Windows 11 22631"),
            (26100, "Windows 11 26100"),
            (1381, "Windows 1381"),
        ] {
            assert_eq!(name(build), expected);
        }
    }
}
