#!/bin/bash
# Fetch and build what run-in-dom0.sh boots: Xen, its tools, a kernel for dom0 and one for the domains. Prints the directory that has it.
#   XEN_LAB_VERSION          4.17, with the tools and kernel of Debian bookworm (default), or 4.20, with those of trixie
# Packages are unpacked below $VMI_LAB_CACHE/xen, never installed. Remove that directory to fetch them anew.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=${VMI_LAB_CACHE:-$HOME/.cache/vmi-lab}
. "$here/../apt.sh"
need gcc gcc
need python3 python3
need lz4 lz4
need xz xz-utils
need zstd zstd
. "$here/version.sh"
xen=$cache/xen
mkdir -p "$xen"
# who changes a script gets another directory, so that several checkouts share the cache
stamp=$(cat "$here"/{prepare.sh,unbzimage.py,dom0-init.sh,domu-init.sh,domu.c,outbox.c} "$here"/../{cpio.py,witness.c} | sha256sum | cut -c1-16)
built=$xen/built-$version-$stamp
exec 9> "$xen/lock"
flock 9
[ ! -d "$built" ] || { touch "$built"; echo "$built"; exit; }

root=$xen/packages-$version
if [ ! -d "$root" ]; then
    apt_setup "$suite" amd64
    kernel() { APT_CONFIG=$conf apt-cache depends "$1" | awk '$1 == "Depends:" { print $2; exit }'; }
    rm -rf "$root.part"
    unpack "$root.part" "xen-hypervisor-$version-amd64" "xen-utils-$version" xen-utils-common xenstore-utils "libxenmisc$version" libxencall1 libxendevicemodel1 \
        libxenevtchn1 libxenforeignmemory1 libxengnttab1 libxenhypfs1 libxenstore4 libxentoolcore1 libxentoollog1 libyajl2 libuuid1 libzstd1 \
        liblzma5 zlib1g libgcc-s1 libc6 busybox-static "$(kernel linux-image-amd64)" "$(kernel linux-image-cloud-amd64)"
    # Since trixie packages have these below /usr only.
    for merged in bin lib lib64; do [ -e "$root.part/$merged" ] || ln -s "usr/$merged" "$root.part/$merged"; done
    # of hundreds of megabytes of modules, a few
    find "$root.part/lib/modules/" -name '*.ko*' -regextype egrep \
        ! -regex '.*/(xen-privcmd|xen-evtchn|xen-gntdev|xen-gntalloc|xenfs|msr|llc|stp|dummy)\.ko(\.xz)?' -delete
    find "$root.part/lib/modules/" -name '*.ko.xz' -exec xz -d {} +
    mv "$root.part" "$root"
fi

work=$(mktemp -d "$xen/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
bin=$root/usr/lib/xen-$version/bin
libraries=$root/usr/lib/x86_64-linux-gnu
gunzip -c "$root/boot/xen-$version-amd64.gz" > "$work/xen"
domu_release=$(basename "$root"/lib/modules/*-cloud-amd64)
dom0_release=${domu_release/-cloud/}
# dom0 gets the ELF file, which Xen need not unpack; the domains' is for tools that want to see it.
python3 "$here/unbzimage.py" "$root/boot/vmlinuz-$dom0_release" "$work/vmlinux.dom0"
python3 "$here/unbzimage.py" "$root/boot/vmlinuz-$domu_release" "$work/vmlinux.domu"

domu=$work/domu
mkdir -p "$domu"/{bin,dev,modules}
cp "$root/bin/busybox" "$domu/bin/"
install -m 755 "$here/domu-init.sh" "$domu/init"
for module in msr llc stp dummy; do cp "$(find "$root/lib/modules/$domu_release/" -name "$module.ko")" "$domu/modules/"; done
gcc -O1 -static -s -Wall -Wextra -o "$domu/bin/domu" "$here/domu.c"
gcc -O1 -static -nostdlib -s -ffreestanding -fno-pie -no-pie -fno-stack-protector -mno-sse -o "$domu/bin/witness" "$here/../witness.c"

dom0=$work/dom0
mkdir -p "$dom0"/{bin,dev,proc,sys,run,tmp,var/log/xen/console,var/lib,etc/xen,lib/modules,usr/lib/xen/bin}
: > "$dom0/etc/xen/xl.conf"
ln -s lib "$dom0/lib64"
ln -s ../run "$dom0/var/run"
ln -s ../run/lock "$dom0/var/lock"
ln -s xen "$dom0/usr/lib/xen-$version"
cp "$root/bin/busybox" "$dom0/bin/"
# By the packages' own loader, and with their libraries alone: this machine's may be others.
needed() { "$root/lib64/ld-linux-x86-64.so.2" --library-path "$libraries:$root/lib/x86_64-linux-gnu" --list "$1" | sed -nE 's|.*[[:space:]](/[^ ]+) \(0x.*|\1|p'; }
for program in xl xenstored xenconsoled xen-init-dom0 libxl-save-helper xenctx; do
    cp "$bin/$program" "$dom0/usr/lib/xen/bin/"
    needed "$bin/$program" | xargs -I{} cp -Lu {} "$dom0/lib/"
done
for program in xenstore-read xenstore-ls; do cp -L "$root/usr/bin/$program" "$dom0/bin/"; done
cp -L "$libraries"/libxen*.so.* "$dom0/lib/"
# By the first, threads of xl end; the others are for programs that are run here.
cp -L "$root"/lib/x86_64-linux-gnu/{libgcc_s.so.1,libm.so.6,libdl.so.2,libpthread.so.0} "$dom0/lib/"
# the crate xenctrl opens the library by the name that has no version
ln -s "libxenctrl.so.$version" "$dom0/lib/libxenctrl.so"
gcc -O1 -static -s -Wall -Wextra -o "$dom0/bin/outbox" "$here/outbox.c"
for module in xen-privcmd xen-evtchn xen-gntdev xen-gntalloc xenfs; do
    cp "$(find "$root/lib/modules/$dom0_release/" -name "$module.ko")" "$dom0/lib/modules/"
done
cp "$root/boot/vmlinuz-$domu_release" "$dom0/domu.kernel"
python3 "$here/../cpio.py" "$domu" > "$dom0/domu.cpio"
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
domain hvm hvm 128 1 1
# A Windows kernel of the tests, which a check starts: nt-machine-live's file for QEMU.
cat > "$dom0/etc/xen/nt.cfg" <<-'CFG'
	name = "nt"
	type = "hvm"
	kernel = "/lab/boot.elf"
	memory = 96
	vcpus = 1
	cpus = "1"
	altp2m = "external"
	on_crash = "preserve"
	on_reboot = "destroy"
CFG
# What device-model.sh brings.
tee -a "$dom0/etc/xen/hvm.cfg" >> "$dom0/etc/xen/nt.cfg" <<-'CFG'
	device_model_version = "qemu-xen"
	device_model_override = "/usr/libexec/qemu-system-i386"
	firmware_override = "/usr/lib/xen/boot/hvmloader"
	bios = "seabios"
	bios_path_override = "/usr/share/seabios/bios-256k.bin"
	nographic = 1
	vga = "none"
	vnc = 0
	usb = 0
CFG
install -m 755 "$here/dom0-init.sh" "$dom0/init"
python3 "$here/../cpio.py" "$dom0" > "$work/dom0.cpio"

mkdir -p "$work/built"
ls "$dom0/lib" > "$work/built/dom0.libraries"
for file in xen vmlinux.dom0 vmlinux.domu dom0.cpio; do mv "$work/$file" "$work/built/$file"; done
# those that nobody used for a week
find "$xen" -maxdepth 1 -name 'built-*' -mtime +7 -exec rm -rf {} +
mv "$work/built" "$built"
echo "$built"
