#!/bin/busybox sh
# Process 1 of dom0: starts Xen's tools and the domains that /lab.conf names, runs /lab/run, and ends the emulator by a reboot. It reports over Xen's
# console (hvc0, which is the first serial port); the command's output goes to the second one, ttyS1.
/bin/busybox --install -s /bin
export PATH=/bin:/usr/lib/xen/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec > /dev/hvc0 2>&1 < /dev/null
echo 1 > /proc/sys/kernel/printk
say() { echo "LAB $(cut -d' ' -f1 /proc/uptime) $*"; }
end() { say "end $1"; sleep 0.3; echo b > /proc/sysrq-trigger; sleep 60; }
say booted
. /lab.conf
mkdir -p /dev/pts /dev/shm /run/xen /run/lock /run/xenstored /var/lib/xen /var/lib/xenstored /var/log/xen/console
mount -t devpts devpts /dev/pts
for m in xen-privcmd xen-evtchn xen-gntdev xen-gntalloc xenfs; do insmod "/lib/modules/$m.ko"; done
mount -t xenfs xenfs /proc/xen
ln -sf ../proc/xen/xenbus /dev/xen/xenbus 2> /dev/null
xenstored --pid-file /run/xen/xenstored.pid
xen-init-dom0
xenconsoled --log=guest --pid-file=/run/xenconsoled.pid
say "tools up"
# Xen 4.20 creates no domain with views where the processor has none.
[ "$EMULATOR" = bochs ] || sed -i '/^altp2m/d' /etc/xen/*.cfg
[ "$PROCESSORS" -gt 1 ] || sed -i '/^cpus/d' /etc/xen/*.cfg
for d in $DOMUS; do
    xl create -q "/etc/xen/$d.cfg" || { say "xl cannot create $d"; tail -n 20 /var/log/xen/*.log; xl dmesg | tail -20; end 125; }
    say "created $d"
done
for d in $DOMUS; do
    log=/var/log/xen/console/guest-$d.log n=0
    until grep -qs '^DOMU_READY' "$log"; do
        n=$((n + 1))
        # A domain that has panicked waits to be looked at.
        if [ "$n" -ge 600 ] || grep -qs 'Kernel panic' "$log"; then
            sleep 1
            tail -60 "$log"
            xl list
            say "$d is not ready"
            end 125
        fi
        usleep 300000
    done
    say "ready $d"
done
stty -F /dev/ttyS1 raw
# Open until the end: what is still to go out is lost when the last one to close it is a process that is killed.
exec 3> /dev/ttyS1
cd /
export RUST_BACKTRACE=1 LD_LIBRARY_PATH=/lib HOME=/ TMPDIR=/tmp XEN_LAB_DOMUS="$DOMUS" XEN_LAB_EMU="$EMULATOR"
say "command starts"
timeout "$SECONDS_TO_RUN" sh /lab/run > /dev/ttyS1 2>&1 3>&-
status=$?
# Settings take effect when all output has gone out (TCSADRAIN): what the program said comes before the end.
stty -F /dev/ttyS1 raw
sleep 1
say "command done"
if [ -n "$VERBOSE" ]; then
    xl list
    for d in $DOMUS; do sed "s/^/$d: /" "/var/log/xen/console/guest-$d.log"; done
    xl dmesg
fi
end "$status"
