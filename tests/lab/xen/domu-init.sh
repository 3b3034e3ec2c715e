#!/bin/busybox sh
# Process 1 of the domains. Makes processes and modules that are known, says DOMU_READY, and then executes each line "NUMBER COMMAND" that it
# gets over the console, with its output between "BEGIN NUMBER" and "END NUMBER STATUS". Besides the shell's commands there are `domu` (domu.c), and:
#   load on|off    a steady load: new processes, system calls, context switches
/bin/busybox mkdir -p /bin /proc /sys /dev /run /data
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
exec > /dev/hvc0 2>&1 < /dev/hvc0
stty -echo -onlcr
echo 1 > /proc/sys/kernel/printk
echo 0 > /proc/sys/kernel/kptr_restrict
ip link set lo up
for module in llc stp dummy msr; do insmod "/modules/$module.ko" $([ "$module" = msr ] && echo allow_writes=on); done

sleep 1000000 &
until grep -qs sleep "/proc/$!/comm"; do usleep 20000; done
witness > /data/facts &
until grep -qs '^ready' /data/facts; do usleep 20000; done
domu hold > /run/held.facts &
until grep -qs '^done' /run/held.facts; do usleep 20000; done

working() {
    while :; do
        cat /proc/self/stat > /dev/null
        usleep 50000
    done
}
load() {
    [ -z "$load" ] || { kill "$load"; wait "$load"; } 2> /dev/null
    load=
    [ "$1" != on ] || { working & load=$!; }
}

echo "DOMU_READY $(uname -r)"
while read -r number command; do
    echo "BEGIN $number"
    eval "$command" < /dev/null
    echo "END $number $?"
done
echo "DOMU_LOST its console"
sleep 1000000
