#!/bin/bash
# Lay out a file system for a machine that has no way to this machine's: tree.sh PROGRAM DIRECTORY
# It has the program with its libraries, and what the tests of running guests need: Python, QEMU 10.0, a kernel, BusyBox, the scripts of the lab, and the programs
# that run in guests, compiled here; `gcc` hands them out there.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=${VMI_LAB_CACHE:-$HOME/.cache/vmi-lab}
program=$1 tree=$2
lab=$(dirname "$here")
qemu=$(dirname "$("$lab/qemu.sh")")

put() { # file...: at the same place there
    local file
    for file; do
        mkdir -p "$tree$(dirname "$file")"
        cp -L "$file" "$tree$file"
    done
}
with_libraries() { # program or library...
    local file library
    for file; do
        put "$file"
        # debug information takes longer to load than to run without
        [ ! -w "$tree$file" ] || strip --strip-debug "$tree$file" 2> /dev/null || true
        for library in $({ ldd "$file" 2> /dev/null || true; } | { grep -oE '/[^ ]+' || true; } | sort -u); do
            [ -e "$tree$library" ] || put "$library"
        done
    done
}

mkdir -p "$tree"/{bin,dev,proc,sys,run,tmp,usr/bin,root}
with_libraries "$program" /bin/bash "$(command -v setpriv)" "$qemu/usr/bin/qemu-system-x86_64"
cp "$cache/busybox/amd64/bin/busybox" "$tree/bin/"

# The system's own: one that stands before it on the path may have its files elsewhere.
python=$(readlink -f /usr/bin/python3)
modules=/usr/lib/$(basename "$python")
with_libraries "$python" "$modules"/lib-dynload/*.so
ln -s "$(basename "$python")" "$tree/usr/bin/python3"
tar cf - --exclude=test --exclude=idlelib --exclude=tkinter --exclude=lib2to3 --exclude=ensurepip --exclude=pydoc_data --exclude='config-*' \
    --exclude=lib-dynload "$modules" 2> /dev/null | tar xf - -C "$tree"

put "$qemu/qemu" "$qemu"/usr/share/qemu/{kvmvapic,linuxboot,linuxboot_dma,multiboot,multiboot_dma,pvh}.bin /usr/share/seabios/bios-256k.bin
kernel=$(python3 -c 'import sys; sys.path[0] = sys.argv[1]; import live; print(live.KERNEL)' "$lab")
mkdir -p "$tree$cache/kernels" "$tree$cache/busybox" "$tree$lab"
cp -a "$cache/kernels/$kernel" "$tree$cache/kernels/"
rm -f "$tree$cache/kernels/$kernel"/{boot/System.map*,vmlinux.btf.gz}
cp -a "$cache/busybox/amd64" "$tree$cache/busybox/"
cp -a "$lab/." "$tree$lab/"

mkdir -p "$tree/compiled"
gcc -O1 -static -nostdlib -s -ffreestanding -fno-pie -no-pie -fno-stack-protector -mno-sse -o "$tree/compiled/witness" "$lab/witness.c"
gcc -O1 -static -s -pthread -o "$tree/compiled/actor" "$lab/actor.c"
cat > "$tree/usr/bin/gcc" <<'GCC'
#!/bin/sh
while [ $# -gt 1 ]; do
    [ "$1" != -o ] || to=$2
    shift
done
exec cp "/compiled/$(basename "$1" .c)" "$to"
GCC
chmod +x "$tree/usr/bin/gcc"
