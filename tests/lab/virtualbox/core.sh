#!/bin/bash
# Have VirtualBox write a core of a Linux guest: core.sh. Prints the directory that has it: `guest.core`, and what the guest said just before, `guest.said`.
# VirtualBox of Debian sid, in a tree of its own below $VMI_LAB_CACHE/virtualbox, recompiles the guest's code: it needs neither its driver nor a processor that
# virtualises. Needs root, debootstrap, grub-common, grub-pc-bin and xorriso. Minutes once; the core is kept until this or the guest's kernel changes.
#   VIRTUALBOX_LAB_TIMEOUT  seconds for the guest (1200)
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
lab=$(dirname "$here")
cache=${VMI_LAB_CACHE:-$HOME/.cache/vmi-lab}
dir=$cache/virtualbox
for tool in debootstrap grub-mkrescue xorriso unshare gcc; do
    command -v $tool > /dev/null || { echo "the lab needs $tool: apt-get install debootstrap grub-common grub-pc-bin xorriso util-linux gcc" >&2; exit 3; }
done
kernel=$(python3 -c 'import sys; sys.path[0] = sys.argv[1]; import live; print(live.KERNEL)' "$lab")
"$lab/kernels.sh" "$kernel" > /dev/null
mkdir -p "$dir"
exec 9> "$dir/lock"
flock 9
if [ ! -d "$dir/tree" ]; then
    rm -rf "$dir/tree.part"
    debootstrap --variant=minbase --components=main,contrib --include=virtualbox sid "$dir/tree.part" ${VMI_LAB_MIRROR:+"$VMI_LAB_MIRROR/debian"} \
        > "$dir/debootstrap.log" 2>&1 || { tail -5 "$dir/debootstrap.log" >&2; exit 1; }
    mv "$dir/tree.part" "$dir/tree"
fi
version=$(chroot "$dir/tree" dpkg-query -W -f '${Version}' virtualbox)
stamp="$version $(cat "$here"/{core.sh,core-in-tree.sh,guest-init.sh,headless.c} "$lab/witness.c" "$cache/kernels/$kernel/packages" | sha256sum | cut -c1-16)"
if [ "$(cat "$dir/core/stamp" 2> /dev/null)" != "$stamp" ]; then
    work=$(mktemp -d "$dir/tmp.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work"/{root/{bin,dev,proc},iso/boot/grub,lab}
    cp "$cache/busybox/amd64/bin/busybox" "$work/root/bin/"
    install -m 755 "$here/guest-init.sh" "$work/root/init"
    gcc -O1 -static -nostdlib -s -ffreestanding -fno-pie -no-pie -fno-stack-protector -mno-sse -o "$work/root/bin/witness" "$lab/witness.c"
    gcc -O1 -Wall -Wextra -o "$work/lab/headless" "$here/headless.c" -ldl
    python3 "$lab/cpio.py" "$work/root" > "$work/iso/boot/initrd"
    cp -L "$cache/kernels/$kernel/vmlinuz" "$work/iso/boot/"
    cat > "$work/iso/boot/grub/grub.cfg" <<-'CFG'
	set timeout=0
	menuentry guest {
	linux /boot/vmlinuz console=ttyS0 quiet no_timer_check tsc=unstable mitigations=off
	initrd /boot/initrd
	}
	CFG
    grub-mkrescue -o "$work/lab/guest.iso" "$work/iso" > "$work/grub.log" 2>&1
    install -m 755 "$here/core-in-tree.sh" "$work/lab/"
    # What it mounts and starts is gone with the namespaces.
    timeout "${VIRTUALBOX_LAB_TIMEOUT:-1200}" unshare --mount --pid --fork --kill-child bash -euc '
        cd "$1"
        mount -t proc proc proc
        mount --rbind /dev dev
        mount -t tmpfs tmp tmp
        mkdir -p lab
        mount --bind "$2" lab
        exec chroot . /bin/bash /lab/core-in-tree.sh' - "$dir/tree" "$work/lab" > "$work/log" 2>&1 || { tail -20 "$work/log" >&2; exit 1; }
    [ -s "$work/lab/guest.core" ] || { tail -20 "$work/log" >&2; exit 1; }
    rm -rf "$dir/core"
    mkdir "$dir/core"
    mv "$work"/lab/guest.{core,said} "$dir/core/"
    echo "$stamp" > "$dir/core/stamp"
fi
echo "$dir/core"
