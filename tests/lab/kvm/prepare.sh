#!/bin/bash
# Fetch what run-under-kvm.sh boots: Debian's kernel with KVM, and the first program it runs. Prints the directory that has `vmlinuz` and `initrd`.
# Packages are unpacked below $VMI_LAB_CACHE/kvm, never installed. Remove that directory to fetch them anew.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=${VMI_LAB_CACHE:-$HOME/.cache/vmi-lab}
. "$here/../apt.sh"
need python3 python3
kvm=$cache/kvm
mkdir -p "$kvm"
# who changes a script gets another directory, so that several checkouts share the cache
built=$kvm/built-$(cat "$here"/{prepare.sh,init.sh,modules.py} "$here/../cpio.py" | sha256sum | cut -c1-16)
exec 9> "$kvm/lock"
flock 9
[ ! -d "$built" ] || { touch "$built"; echo "$built"; exit; }

work=$(mktemp -d "$kvm/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
apt_setup trixie amd64
kernel=$(APT_CONFIG=$conf apt-cache depends linux-image-amd64 | awk '$1 == "Depends:" { print $2; exit }')
unpack "$work/packages" "$kernel" busybox-static
mkdir -p "$work"/{root/{bin,dev,proc,sys,host,changes,modules,machine},built}
cp "$work/packages/usr/bin/busybox" "$work/root/bin/"
install -m 755 "$here/init.sh" "$work/root/init"
python3 "$here/modules.py" "$work/packages/usr/lib/modules" "$work/root/modules" 9p 9pnet_virtio overlay kvm_amd kvm_intel
python3 "$here/../cpio.py" "$work/root" > "$work/built/initrd"
cp "$work"/packages/boot/vmlinuz-* "$work/built/vmlinuz"
# those that nobody used for a week
find "$kvm" -maxdepth 1 -name 'built-*' -mtime +7 -exec rm -rf {} +
mv "$work/built" "$built"
echo "$built"
