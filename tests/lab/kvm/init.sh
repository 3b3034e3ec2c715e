#!/bin/busybox sh
# Process 1 of a machine that has KVM: runs /machine/run, in /tree if there is one, else in the file system of the machine that emulates this one, changes going to
# memory. It reports over the first serial port; the program's output goes to the second one.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
exec > /dev/ttyS0 2>&1 < /dev/null
say() { echo "LAB $(cut -d' ' -f1 /proc/uptime) $*"; }
end() { say "end $1"; sleep 60; }
for module in /modules/*; do
    case $module in
    *-kvm_*) ;;
    *) insmod "$module" || end 125 ;;
    esac
done
# Bochs 3.0 takes the posted-interrupt descriptor, aligned to 64 bytes as it must be, for an error.
insmod /modules/*-kvm_amd.ko 2> /dev/null || insmod /modules/*-kvm_intel.ko enable_apicv=0 || end 125
# Now and then QEMU's SVM lets a guest go on with this machine's registers (seen with QEMU 10.0 and 11.1): it then faults at the instruction
# behind VMRUN, at once, and nothing that happens to it from there on means anything.
if [ -d /sys/module/kvm_amd ]; then
    mount -t tracefs trace /sys/kernel/tracing || end 125
    symbol() { awk -v name="$1" '$3 == name { print "0x" $1 }' /proc/kallsyms; }
    cd /sys/kernel/tracing/events/kvm/kvm_page_fault
    echo "guest_rip >= $(symbol __svm_vcpu_run) && guest_rip < $(symbol __pfx___svm_sev_es_vcpu_run)" > filter || end 125
    echo 1 > enable
    cd /
    (head -n 1 /sys/kernel/tracing/trace_pipe; end 124) &
fi
if [ -d /tree ]; then
    root=/tree
    chroot $root /bin/busybox --install -s /bin
else
    root=/changes/root
    mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host || end 125
    mount -t tmpfs changes /changes
    mkdir -p /changes/upper /changes/work $root
    mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work overlay $root || end 125
fi
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount -t devtmpfs dev $root/dev
mkdir -p $root/dev/pts $root/dev/shm
mount -t devpts devpts $root/dev/pts
mount -t tmpfs shm $root/dev/shm
mount -t tmpfs run $root/run
cp -r /machine $root/run/
ip link set lo up
stty -F /dev/ttyS1 raw
# Open until the end: what is still to go out is lost when the last one to close it is a process that is killed.
exec 3> /dev/ttyS1
say "program starts"
set -o pipefail
# By a pipe: a program that finds a terminal may colour what it prints.
chroot $root /bin/bash /run/machine/run 2>&1 3>&- | cat > /dev/ttyS1
status=$?
# Settings take effect when all output has gone out (TCSADRAIN): what the program said comes before the end.
stty -F /dev/ttyS1 raw
sleep 0.5
end $status
