#!/bin/bash
# Boot Xen with a paravirtualised dom0 and Linux domains in an emulator, and run a program in dom0: run-in-dom0.sh PROGRAM [ARGUMENT...]
# Its output and exit status are this script's. Status 125: the lab itself failed; what the consoles said is then on standard error.
# Where the lab fails before the program was started, it is booted once more; a program that was started is not started again.
# A domain has the name of its configuration: pvh, pv, smp (two vCPUs), lone (two, of which the guest uses one), big (memory above 4 GiB), hvm (firmware and
# devices that QEMU emulates in dom0); see prepare.sh.
#   XEN_LAB_DOMUS            domains to start ("pvh")
#   XEN_LAB_VERSION          of Xen: 4.17 or 4.20 (4.17)
#   XEN_LAB_EMU              qemu (AMD SVM with NPT), or bochs (Intel VMX with EPT, which alone has traps on memory, single steps, breakpoints, views)
#   XEN_LAB_TIMEOUT          seconds for all (900, in Bochs 1500)
#   XEN_LAB_CMD_TIMEOUT      seconds for the program (600, in Bochs 900)
#   XEN_LAB_FILES            files to put beside the program, in /lab
#   XEN_LAB_DEVICE_MODEL=1   brings what such domains need though "hvm" is not started, for a program that starts one
#   XEN_LAB_OUTBOX           a file that becomes the memory of a device, for dom0's program `outbox` (QEMU)
#   XEN_LAB_DOM0_MEMORY      MiB for dom0 (320; 768 with a device model)
#   XEN_LAB_VERBOSE=1        consoles and logs on standard error at the end
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
[ $# -gt 0 ] || { sed -n '2,/^set/s/^# \?//p' "$0" >&2; exit 125; }
emulator=${XEN_LAB_EMU:-qemu} domus=${XEN_LAB_DOMUS-pvh}
built=$("$here/prepare.sh") || exit 125
. "$here/version.sh"
# Under SVM of QEMU 7.2, kernels of Debian 13 often panic at their start, with processor flags that are none; under that of 10.0 they did not.
qemu=qemu-system-x86_64
[ "$emulator/$version" != qemu/4.20 ] || qemu=$("$here/../qemu.sh") || exit 125

work=$(mktemp -d "${TMPDIR:-/tmp}/xen-lab.XXXXXX")
running=
trap '[ -z "$running" ] || kill "$running" 2> /dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
mkdir -p "$work/root/lab" "$work/root/lib"
program=$(command -v -- "$1") || { echo "no such program: $1" >&2; exit 125; }
shift
cp -L -- "$program" "$work/root/lab/program"
chmod 755 "$work/root/lab/program"
# The libraries that the program needs, but those that dom0 has: its may be newer, and its own programs need them.
for library in $({ ldd "$program" 2> /dev/null || true; } | { grep -oE '/[^ ]+' || true; } | sort -u); do
    grep -qxF "$(basename "$library")" "$built/dom0.libraries" || cp -L "$library" "$work/root/lib/"
done
if [[ " $domus " = *" hvm "* || -n ${XEN_LAB_DEVICE_MODEL-} ]]; then
    model=$("$here/device-model.sh") || exit 125
    cp -a "$model/." "$work/root/"
    : "${XEN_LAB_DOM0_MEMORY:=768}"
fi
# debug information takes longer to load than to run without
strip --strip-debug "$work/root/lab/program" 2> /dev/null || true
for file in ${XEN_LAB_FILES-}; do cp -L -- "$file" "$work/root/lab/"; done
{ printf /lab/program; [ $# = 0 ] || printf ' %q' "$@"; echo; } > "$work/root/lab/run"

# In QEMU one processor for what is paravirtualised, dom0 and the domain pv, and one for the others. Bochs is faster with one.
processors=2 memory=$((704 + ${XEN_LAB_DOM0_MEMORY:=320})) seconds=900 boot_seconds=400 command_seconds=600
[[ " $domus " != *" big "* ]] || memory=$((memory + 4608))
[ "$emulator" = qemu ] || processors=1 seconds=1500 boot_seconds=700 command_seconds=900
cat > "$work/root/lab.conf" <<CONF
DOMUS="$domus"
EMULATOR=$emulator
PROCESSORS=$processors
SECONDS_TO_RUN=${XEN_LAB_CMD_TIMEOUT:-$command_seconds}
VERBOSE=${XEN_LAB_VERBOSE-}
CONF
cp "$built/dom0.cpio" "$work/initrd"
python3 "$here/../cpio.py" "$work/root" "$(stat -c %s "$work/initrd")" >> "$work/initrd"

# eager-fpu: without, under TCG of QEMU 7.2, programs of paravirtualised kernels now and then find floating-point and vector registers of one another.
xen_options="console=com1 com1=115200,8n1 dom0_mem=${XEN_LAB_DOM0_MEMORY}M,max:${XEN_LAB_DOM0_MEMORY}M dom0_max_vcpus=1 dom0_vcpus_pin"
xen_options+=" loglvl=warning guest_loglvl=warning cpuidle=0 spec-ctrl=no,eager-fpu=1"
dom0_options="console=hvc0 quiet panic=1 mitigations=off nokaslr"
# Boots once and shows the program's output; sets `status`, to 125 where there is none, and `started`.
boot() {
    rm -rf "$work"/{console,out,iso,xen.iso}
    : > "$work/out"
    : > "$work/console"
    case $emulator in
    qemu)
        # Without MWAIT, on which TCG faults in Xen's idle loop; SMAP, by which QEMU 7.2 checks the IRET of a PV kernel as the supervisor's; RDTSCP, which Xen
        # cannot skip when it is intercepted, as TCG does not tell the next instruction.
        device=()
        if [ -n "${XEN_LAB_OUTBOX-}" ]; then
            device=(-object "memory-backend-file,id=outbox,share=on,size=$(stat -c %s "$XEN_LAB_OUTBOX"),mem-path=$XEN_LAB_OUTBOX" -device ivshmem-plain,memdev=outbox)
        fi
        timeout "${XEN_LAB_TIMEOUT:-$seconds}" "$qemu" -accel tcg,thread=multi -machine pc -cpu EPYC,-monitor,-smap,-rdtscp -smp $processors \
            -m $memory -nodefaults -no-reboot -display none -monitor none -serial "file:$work/console" -serial "file:$work/out" "${device[@]}" \
            -kernel "$built/xen" -append "$xen_options" -initrd "$built/vmlinux.dom0 $dom0_options,$work/initrd" < /dev/null > "$work/emulator.log" 2>&1 & ;;
    bochs)
        for tool in grub-mkrescue xorriso; do command -v $tool > /dev/null || { echo "the lab needs $tool: apt-get install grub-common grub-pc-bin xorriso" >&2; exit 125; }; done
        "$here/../bochs.sh" > /dev/null || exit 125
        mkdir -p "$work/iso/boot/grub"
        ln "$built/xen" "$built/vmlinux.dom0" "$work/initrd" "$work/iso/boot/" 2> /dev/null || cp "$built/xen" "$built/vmlinux.dom0" "$work/initrd" "$work/iso/boot/"
        # Bochs 3.0 takes Xen's posted-interrupt descriptor, aligned to 64 bytes as it must be, for an error: apicv=0.
        cat > "$work/iso/boot/grub/grub.cfg" <<-CFG
	set timeout=0
	menuentry xen {
	multiboot /boot/xen xen $xen_options altp2m=1 apicv=0
	module --nounzip /boot/vmlinux.dom0 dom0 $dom0_options
	module --nounzip /boot/initrd
	}
	CFG
        grub-mkrescue -o "$work/xen.iso" "$work/iso" > "$work/emulator.log" 2>&1
        timeout "${XEN_LAB_TIMEOUT:-$seconds}" "$here/../bochs-run.sh" "$work/xen.iso" $memory "$work" < /dev/null >> "$work/emulator.log" 2>&1 & ;;
    *)
        echo "XEN_LAB_EMU=$emulator: qemu or bochs" >&2
        exit 125 ;;
    esac
    running=$!
    tail --pid=$running -s 0.5 -c +1 -f "$work/out" & shown=$!
    local limit=$((SECONDS + boot_seconds))
    started=
    while kill -0 $running 2> /dev/null && ! grep -qsa '^LAB [0-9.]* end' "$work/console"; do
        if [ -z "$started" ]; then
            if grep -qsa '^LAB [0-9.]* command starts' "$work/console"; then
                started=yes
            elif [ $SECONDS -gt $limit ]; then
                echo "the program was not started within $boot_seconds s" >> "$work/emulator.log"
                break
            fi
        fi
        sleep 0.5
    done
    sleep 1
    kill $running 2> /dev/null || true
    wait $running 2> /dev/null || true
    running=
    wait $shown || true
    ! grep -qsa '^LAB [0-9.]* command starts' "$work/console" || started=yes
    status=$(console | sed -n 's/^LAB [0-9.]* end \([0-9]*\).*/\1/p' | tail -1)
    if [ -n "${XEN_LAB_VERBOSE-}" ] || [ "${status:-125}" = 125 ]; then
        grep -v "TCG doesn't support" "$work/emulator.log" >&2 || true
        console >&2
    fi
    [ -n "$status" ] || { echo "the emulator ended, or its time did, before the program" >&2; status=125; }
}
console() { { cat "$work/console" 2> /dev/null || true; } | tr -d '\r'; }

boot
if [ "$status" = 125 ] && [ -z "$started" ]; then
    echo "the lab failed before the program was started; it is booted once more" >&2
    boot
    [ "$status" != 125 ] || [ -n "$started" ] || echo "the lab failed twice before the program was started" >&2
fi
exit "$status"
