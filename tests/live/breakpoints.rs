//! Breakpoints as the tests set them.
//!
//! Where `tests/lab/kvm` boots a machine that has KVM, QEMU emulates AMD's SVM, in two points not as processors do (QEMU 10.0); `VMI_LAB_EMULATED_SVM` says so.
//! INT3 reaches the guest though it is to be intercepted, so that KVM never learns of a software breakpoint (`target/i386/tcg/excp_helper.c`: `raise_interrupt`
//! asks for the intercept of INT n). And an interrupt is delivered with RF in the flags that it saves (`seg_helper.c`: `exception_is_fault` of its number), so that
//! a vCPU that met a breakpoint while another one's was being told, and gets an interrupt first when it goes on, passes the breakpoint.

use vmi::x86::X86;
use vmi::{Trap, VirtAddr};

fn svm_is_emulated() -> bool {
    std::env::var_os("VMI_LAB_EMULATED_SVM").is_some()
}

/// Whether there are software breakpoints here.
pub(crate) fn software() -> bool {
    !svm_is_emulated()
}

/// A software breakpoint if there are any here, or one in a debug register.
pub(crate) fn at(address: VirtAddr) -> Trap<X86> {
    let trap = Trap::breakpoint(address);
    if software() { trap } else { trap.hardware() }
}

/// The vCPUs of a guest with so many that may meet a breakpoint at the same time, as `actor` wants them; one after another where none may.
pub(crate) fn together(cpus: usize) -> Vec<String> {
    let all: Vec<String> = (0..cpus).map(|cpu| cpu.to_string()).collect();
    if svm_is_emulated() { all } else { vec![all.join(" ")] }
}
