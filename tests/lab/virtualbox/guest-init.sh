#!/bin/busybox sh
# Process 1 of the guest: says on the serial port what is inside, and then does nothing more.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mkdir /data
mount -t tmpfs data /data
ip link set lo up
exec > /dev/ttyS0 2>&1 < /dev/null
stty raw
witness > /facts &
sleep 7777 &
until grep -q '^ready' /facts; do sleep 1; done
sed 's/^/fact /' /facts
# The first of them, as the kernel takes its time for each; but for those that lie at an offset of the per-cpu area.
head -n 20000 /proc/kallsyms | awk '$2 ~ /[Tt]/ && NR % 50 == 0 { print "symbol " $1 " " $3 }'
for status in /proc/[0-9]*/status; do
    awk '$1 == "Name:" { name = $2 } $1 == "Pid:" { pid = $2 } $1 == "PPid:" { print "ps " pid " " $2 " " name }' "$status"
done
echo ready
mkfifo /data/fifo
read -r nothing <> /data/fifo
