#!/bin/bash
# Fetch and build what run-in-dom0.sh boots: Xen 4.17, its tools, a kernel for dom0 and one for the domains. Prints the directory that has it.
# Packages are unpacked below $VMI_LAB_CACHE/xen, never installed. Remove that directory to fetch them anew.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=${VMI_LAB_CACHE:-$HOME/.cache/vmi-lab}
. "$here/../apt.sh"
need gcc gcc
need python3 python3
need lz4 lz4
xen=$cache/xen
mkdir -p "$xen"
# who changes a script gets another directory, so that several checkouts share the cache
stamp=$(cat "$here"/{prepare.sh,cpio.py,unbzimage.py,dom0-init.sh,domu-init.sh,domu.c,outbox.c} "$here/../witness.c" | sha256sum | cut -c1-16)
built=$xen/built-$stamp
exec 9> "$xen/lock"
flock 9
[ ! -d "$built" ] || { touch "$built"; echo "$built"; exit; }
# after any failure the package lists are read anew: the mirror may have moved on
trap '[ $? = 0 ] || rm -f "$cache"/apt/*/updated' EXIT

root=$xen/packages
if [ ! -d "$root" ]; then
    apt_setup bookworm amd64
    kernel() { APT_CONFIG=$conf apt-cache depends "$1" | awk '$1 == "Depends:" { print $2; exit }'; }
    rm -rf "$root.part"
    for package in xen-hypervisor-4.17-amd64 xen-utils-4.17 xen-utils-common xenstore-utils libxenmisc4.17 libxencall1 libxendevicemodel1 \
        libxenevtchn1 libxenforeignmemory1 libxengnttab1 libxenhypfs1 libxenstore4 libxentoolcore1 libxentoollog1 libyajl2 libuuid1 libzstd1 \
        liblzma5 zlib1g libgcc-s1 libc6 busybox-static "$(kernel linux-image-amd64)" "$(kernel linux-image-cloud-amd64)"; do
        unpack "$package" "$root.part" >&2
    done
    # of hundreds of megabytes of modules, a few
    find "$root.part/lib/modules" -name '*.ko' -regextype egrep \
        ! -regex '.*/(xen-privcmd|xen-evtchn|xen-gntdev|xen-gntalloc|xenfs|msr|llc|stp|dummy)\.ko' -delete
    mv "$root.part" "$root"
fi

work=$(mktemp -d "$xen/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
bin=$(echo "$root"/usr/lib/xen-4.*/bin)
libraries=$root/usr/lib/x86_64-linux-gnu
gunzip -c "$root"/boot/xen-4.*-amd64.gz > "$work/xen"
domu_release=$(basename "$root"/lib/modules/*-cloud-amd64)
dom0_release=${domu_release/-cloud/}
# dom0 gets the ELF file, which Xen need not unpack; the domains' is for tools that want to see it.
python3 "$here/unbzimage.py" "$root/boot/vmlinuz-$dom0_release" "$work/vmlinux.dom0"
python3 "$here/unbzimage.py" "$root/boot/vmlinuz-$domu_release" "$work/vmlinux.domu"

domu=$work/domu
mkdir -p "$domu"/{bin,dev,modules}
cp "$root/bin/busybox" "$domu/bin/"
install -m 755 "$here/domu-init.sh" "$domu/init"
for module in msr llc stp dummy; do cp "$(find "$root/lib/modules/$domu_release" -name "$module.ko")" "$domu/modules/"; done
gcc -O1 -static -s -Wall -Wextra -o "$domu/bin/domu" "$here/domu.c"
gcc -O1 -static -nostdlib -s -ffreestanding -fno-pie -no-pie -fno-stack-protector -mno-sse -o "$domu/bin/witness" "$here/../witness.c"

dom0=$work/dom0
mkdir -p "$dom0"/{bin,dev,proc,sys,run,tmp,var/log/xen/console,var/lib,etc/xen,lib/modules,usr/lib/xen/bin}
: > "$dom0/etc/xen/xl.conf"
ln -s lib "$dom0/lib64"
ln -s ../run "$dom0/var/run"
ln -s ../run/lock "$dom0/var/lock"
ln -s xen "$dom0/usr/lib/xen-4.17"
cp "$root/bin/busybox" "$dom0/bin/"
needed() { LD_LIBRARY_PATH=$libraries ldd "$1" | grep -oE '/[^ ]+' | sort -u; }
for program in xl xenstored xenconsoled xen-init-dom0 libxl-save-helper xenctx; do
    cp "$bin/$program" "$dom0/usr/lib/xen/bin/"
    needed "$bin/$program" | xargs -I{} cp -Lu {} "$dom0/lib/"
done
for program in xenstore-read xenstore-ls; do cp -L "$root/usr/bin/$program" "$dom0/bin/"; done
cp -L "$libraries"/libxen*.so.* "$dom0/lib/"
cp -L /lib/x86_64-linux-gnu/libgcc_s.so.1 "$dom0/lib/" # threads of xl end through it
# the crate xenctrl opens the library by the name that has no version
ln -s libxenctrl.so.4.17 "$dom0/lib/libxenctrl.so"
gcc -O1 -static -s -Wall -Wextra -o "$dom0/bin/outbox" "$here/outbox.c"
for module in xen-privcmd xen-evtchn xen-gntdev xen-gntalloc xenfs; do
    cp "$(find "$root/lib/modules/$dom0_release" -name "$module.ko")" "$dom0/lib/modules/"
done
cp "$root/boot/vmlinuz-$domu_release" "$dom0/domu.kernel"
python3 "$here/cpio.py" "$domu" > "$dom0/domu.cpio"
domain() { # name type memory vcpus processor [options of the kernel]
    # What runs by SVM has a processor for itself: see run-in-dom0.sh. TCG cannot emulate RDTSC's intercept. Memory above 4 GiB begins where the hole ends.
    cat > "$dom0/etc/xen/$1.cfg" <<-CFG
	name = "$1"
	type = "$2"
	kernel = "/domu.kernel"
	ramdisk = "/domu.cpio"
	memory = $3
	vcpus = $4
	cpus = "$5"
	cmdline = "console=hvc0 quiet mitigations=off nofsgsbase${6:+ $6}"
	tsc_mode = "native"
	altp2m = "external"
	on_crash = "preserve"
	on_reboot = "destroy"
	CFG
}
domain pvh pvh 128 1 1
domain pv pv 128 1 0
domain smp pvh 160 2 1
domain lone pvh 128 2 1 maxcpus=1
domain big pvh 4608 1 1
install -m 755 "$here/dom0-init.sh" "$dom0/init"
python3 "$here/cpio.py" "$dom0" > "$work/dom0.cpio"

mkdir -p "$work/built/lib"
cp -L "$libraries"/libxen*.so.* "$libraries"/libyajl.so.2 "$work/built/lib/"
for file in xen vmlinux.dom0 vmlinux.domu dom0.cpio; do mv "$work/$file" "$work/built/$file"; done
# those that nobody used for a week
find "$xen" -maxdepth 1 -name 'built-*' -mtime +7 -exec rm -rf {} +
mv "$work/built" "$built"
echo "$built"
