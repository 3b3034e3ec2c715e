//! Protected processes: `_PS_PROTECTION`.

use core::fmt;

/// Who may open a process and for what, beside its token (`_PS_PROTECTION`, since Windows 8.1).
///
/// "The Evolution of Protected Processes" (Ionescu, 2013) names the types and signers; Microsoft's documentation of `PROCESS_PROTECTION_LEVEL_INFORMATION` those
/// that programs may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Protection {
    /// How far others are kept out: 0 not at all, 1 as a light protected process, 2 as a protected process.
    pub kind: u8,
    /// Whether what would be refused is only recorded.
    pub audit: bool,
    /// Whose signature its programs must have: 0 none, 3 an antimalware vendor, 4 LSA, 5 Windows, 6 a trusted part of Windows (WinTcb), ...
    pub signer: u8,
}

impl Protection {
    /// The parts of the byte `Level`.
    pub const fn from_level(level: u8) -> Self {
        Self { kind: level & 7, audit: level & 8 != 0, signer: level >> 4 }
    }

    /// Whether it is protected at all.
    pub const fn is_protected(self) -> bool {
        self.kind != 0
    }
}

impl fmt::Display for Protection {
    /// `none`, `PP WinTcb`, `PPL Antimalware`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            0 => return f.write_str("none"),
            1 => "PPL",
            2 => "PP",
            other => return write!(f, "type {other}, signer {}", self.signer),
        };
        let signer = match self.signer {
            0 => return f.write_str(kind),
            1 => "Authenticode",
            2 => "CodeGen",
            3 => "Antimalware",
            4 => "LSA",
            5 => "Windows",
            6 => "WinTcb",
            7 => "WinSystem",
            8 => "App",
            other => return write!(f, "{kind} signer {other}"),
        };
        write!(f, "{kind} {signer}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Levels that tools of Windows show: 0x72 for System, 0x61 for csrss.exe and smss.exe, 0x31 for MsMpEng.exe, 0x41 for lsass.exe with protection.
    #[test]
    fn levels_of_known_processes() {
        let text = |level| Protection::from_level(level).to_string();
        assert_eq!(text(0x72), "PP WinSystem");
        assert_eq!(text(0x61), "PPL WinTcb");
        assert_eq!(text(0x31), "PPL Antimalware");
        assert_eq!(text(0x41), "PPL LSA");
        assert_eq!(text(0), "none");
        assert!(!Protection::from_level(0).is_protected());
    }
}
