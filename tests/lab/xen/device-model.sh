#!/bin/bash
# Fetch what dom0 needs for domains with firmware and emulated devices: QEMU as Debian builds it for Xen, hvmloader and SeaBIOS. Prints a directory with the files
# that dom0 lacks, laid out as they are to be there.
#   XEN_LAB_VERSION          as of prepare.sh, which must have run
# Packages are unpacked below $VMI_LAB_CACHE/xen, never installed. Remove that directory to fetch them anew.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=${VMI_LAB_CACHE:-$HOME/.cache/vmi-lab}
. "$here/../apt.sh"
. "$here/version.sh"
xen=$cache/xen
stamp=$(sha256sum < "$here/device-model.sh" | cut -c1-16)
built=$xen/device-model-$version-$stamp
exec 9> "$xen/lock"
flock 9
[ ! -d "$built" ] || { touch "$built"; echo "$built"; exit; }

work=$(mktemp -d "$xen/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
apt_setup "$suite" amd64
# without packages that have no libraries
packages=$(APT_CONFIG=$conf apt-cache depends --recurse --important qemu-system-xen | grep -oE '^[a-z0-9][^ ]*' | sort -u |
    grep -vxE 'gcc-.*-base|ipxe-qemu|iso-codes|.*-bin')
# shellcheck disable=SC2086
unpack "$work/packages" $packages
for merged in bin lib lib64; do [ -e "$work/packages/$merged" ] || ln -s "usr/$merged" "$work/packages/$merged"; done
root=$work/packages
libraries=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu
program=$(find "$root/usr" -name xen-qemu-system-i386 -o -name qemu-system-i386 -type f | head -1)
mkdir -p "$work/built"/{lib,usr/lib/xen/boot,usr/libexec,usr/share/{qemu/keymaps,seabios}}
# It looks for its files from where it is.
cp "$program" "$work/built/usr/libexec/qemu-system-i386"
"$root/lib64/ld-linux-x86-64.so.2" --library-path "$libraries" --list "$program" | sed -nE 's|.*[[:space:]](/[^ ]+) \(0x.*|\1|p' | xargs -I{} cp -L {} "$work/built/lib/"
cp "$xen/packages-$version/usr/lib/xen-$version/boot/hvmloader" "$work/built/usr/lib/xen/boot/"
cp "$root/usr/share/seabios/bios-256k.bin" "$work/built/usr/share/seabios/"
for rom in linuxboot.bin linuxboot_dma.bin multiboot.bin multiboot_dma.bin kvmvapic.bin; do cp -L "$(find "$root/usr/share" -name $rom | head -1)" "$work/built/usr/share/qemu/"; done
cp -L "$root/usr/share/qemu/keymaps/en-us" "$work/built/usr/share/qemu/keymaps/"
# those that nobody used for a week
find "$xen" -maxdepth 1 -name 'device-model-*' -mtime +7 -exec rm -rf {} +
mv "$work/built" "$built"
echo "$built"
