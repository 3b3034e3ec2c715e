#!/bin/bash
# Boot a machine that has KVM, whether this one has it or not, and run a program in it: run-under-kvm.sh PROGRAM [ARGUMENT...]
# The program runs as root, with this environment, in this directory. Its output and exit status are this script's. Status 125: the lab itself failed; what the
# console said is then on standard error.
#   KVM_LAB_EMU        qemu (AMD's SVM with NPT; this machine's whole file system, what the program changes is gone at the end), or
#                      bochs (Intel's VMX with EPT; a file system with no more than tree.sh lays out)
#   KVM_LAB_TIMEOUT    seconds for all (1200)
#   KVM_LAB_MEMORY     MiB (3072, in Bochs 1536)
#   KVM_LAB_VERBOSE=1  the console on standard error at the end
# The machine has one processor: with two, QEMU's SVM lost a guest in every third run (init.sh says how), with one in none so far. If it does, all is booted
# and run once more, up to five times, and the output says so.
# VMI_LAB_ACCEL=kvm and, in QEMU, VMI_LAB_EMULATED_SVM=1 say to the program where it runs.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
[ $# -gt 0 ] || { sed -n '2,/^set/s/^# \?//p' "$0" >&2; exit 125; }
emulator=${KVM_LAB_EMU:-qemu}
built=$("$here/prepare.sh") || exit 125
program=$(command -v -- "$1") || { echo "no such program: $1" >&2; exit 125; }

work=$(mktemp -d "${TMPDIR:-/tmp}/kvm-lab.XXXXXX")
running=
trap '[ -z "$running" ] || kill "$running" 2> /dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
mkdir -p "$work/root/machine"
{
    export VMI_LAB_ACCEL=kvm
    [ "$emulator" != qemu ] || export VMI_LAB_EMULATED_SVM=1
    export -p
    # Bochs' tree has nothing of it.
    printf 'mkdir -p %q\ncd %q\nexec' "$PWD" "$PWD"
    printf ' %q' "$program" "${@:2}"
    echo
} > "$work/root/machine/run"
[ "$emulator" != bochs ] || "$here/tree.sh" "$program" "$work/root/tree" || exit 125
cp "$built/initrd" "$work/initrd"
python3 "$here/../cpio.py" "$work/root" "$(stat -c %s "$work/initrd")" >> "$work/initrd"
rm -rf "$work/root"

options="console=ttyS0 quiet panic=-1 mitigations=off"
case $emulator in
qemu)
    qemu=$("$here/../qemu.sh") || exit 125
    machine=("$qemu" -accel tcg,thread=multi -machine q35 -cpu EPYC -smp 1 -m "${KVM_LAB_MEMORY:-3072}" -nodefaults -no-reboot \
        -display none -monitor none -serial "file:$work/console" -serial "file:$work/out" \
        -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
        -kernel "$built/vmlinuz" -initrd "$work/initrd" -append "$options") ;;
bochs)
    for tool in grub-mkrescue xorriso; do command -v $tool > /dev/null || { echo "the lab needs $tool: apt-get install grub-common grub-pc-bin xorriso" >&2; exit 125; }; done
    mkdir -p "$work/iso/boot/grub"
    mv "$work/initrd" "$work/iso/boot/"
    cp "$built/vmlinuz" "$work/iso/boot/"
    # What Bochs has of clocks is not worth measuring.
    cat > "$work/iso/boot/grub/grub.cfg" <<-CFG
	set timeout=0
	menuentry kvm {
	linux /boot/vmlinuz $options no_timer_check tsc=reliable lpj=4000000
	initrd /boot/initrd
	}
	CFG
    grub-mkrescue -o "$work/kvm.iso" "$work/iso" > "$work/mkrescue.log" 2>&1 || { cat "$work/mkrescue.log" >&2; exit 125; }
    rm -rf "$work/iso"
    machine=("$here/../bochs-run.sh" "$work/kvm.iso" "${KVM_LAB_MEMORY:-1536}" "$work") ;;
*)
    echo "KVM_LAB_EMU=$emulator: qemu or bochs" >&2
    exit 125 ;;
esac

run() { # boots it, shows what the program says, and sets $status
    : > "$work/out"
    : > "$work/console"
    timeout "${KVM_LAB_TIMEOUT:-1200}" "${machine[@]}" < /dev/null > "$work/emulator.log" 2>&1 &
    running=$!
    tail --pid=$running -s 0.5 -c +1 -f "$work/out" & shown=$!
    while kill -0 $running 2> /dev/null && ! grep -qsa '^LAB [0-9.]* end' "$work/console"; do sleep 0.5; done
    sleep 1
    kill $running 2> /dev/null || true
    wait $running 2> /dev/null || true
    running=
    wait $shown || true
    status=$(tr -d '\r' < "$work/console" | sed -n 's/^LAB [0-9.]* end \([0-9]*\).*/\1/p' | head -1)
    if [ -n "${KVM_LAB_VERBOSE-}" ] || [ "${status:-125}" = 125 ]; then
        grep -v "TCG doesn't support" "$work/emulator.log" >&2 || true
        tr -d '\r' < "$work/console" >&2
    fi
    [ -n "$status" ] || { echo "the emulator ended, or its time did, before the program" >&2; status=125; }
}

for attempt in 1 2 3 4 5; do
    run
    [ "$status" = 124 ] || break
    echo "a guest went on with the registers of the emulated machine, attempt $attempt of 5: $(grep -a kvm_page_fault "$work/console" | head -1 | tr -s ' \r' ' ')"
done
[ "$status" != 124 ] || { echo "QEMU's SVM lost every guest" >&2; status=125; }
exit "$status"
