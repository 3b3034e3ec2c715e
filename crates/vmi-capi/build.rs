//! Gives the shared library its versioned name (soname), by which programs that are linked with it find it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let part = |name| std::env::var(name).unwrap_or_default();
    // Before 1.0 a minor release may change the interface (semver), so it is part of the name.
    let name = match part("CARGO_PKG_VERSION_MAJOR").as_str() {
        "0" => format!("libvmi_capi.so.0.{}", part("CARGO_PKG_VERSION_MINOR")),
        major => format!("libvmi_capi.so.{major}"),
    };
    if part("CARGO_CFG_TARGET_OS") == "linux" {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,{name}");
    }
}
