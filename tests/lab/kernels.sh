#!/bin/bash
# Fetch kernels of kernels.tsv and a static busybox: kernels.sh [--dbg] KERNEL...
# Packages are unpacked below $VMI_LAB_CACHE, never installed, and what is already there costs no network.
# --dbg also fetches the debug packages (vmlinux with DWARF, 0.3 GB to download and more than 1 GB unpacked each).
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=${VMI_LAB_CACHE:-$HOME/.cache/vmi-lab}
. "$here/apt.sh"
# after any failure the package lists are read anew: the mirror may have moved on
trap '[ $? = 0 ] || rm -f "$cache"/apt/*/updated' EXIT

depends() { # package pattern: the dependencies that match
    APT_CONFIG=$conf apt-cache depends --no-recommends --no-suggests "$1" |
        sed -n 's/^ *Depends: //p' | grep -E "$2" || true
}

newest() { # pattern: the newest package with such a name
    APT_CONFIG=$conf apt-cache pkgnames linux-image- | grep -xE "$1" | sort -V | tail -1
}

fetch() { # name arch suite package-pattern
    local name=$1 arch=$2 dir=$cache/kernels/$1 image p
    apt_setup "$3" "$arch"
    rm -rf "$dir" "$dir.part"
    p=$(newest "$4") || { echo "$name: suite $3 has no package $4" >&2; exit 1; }
    image=$(depends "$p" '^linux-image-[0-9].*[0-9]')
    image=${image:-$p}
    for p in "$image" $(depends "$image" '^linux-(modules|binary|base)-[0-9]'); do unpack "$p" "$dir.part"; done
    echo "$image" > "$dir.part/image"
    echo "$arch" > "$dir.part/arch"
    (   # the same names whichever way the release lays its packages out; of the modules, the lab's only
        cd "$dir.part"
        ln -s "$(find . -path '*/modules/*' -prune -o -path '*/lib/modules' -print)"/* modules
        ln -s "$(find . -name 'vmlinuz*' -type f)" vmlinuz
        ln -s "$(find . -path ./modules -prune -o \( -name 'config-*' -o -path '*/modules/*/config' \) -type f -print)" config
        find . -name '*.ko*' -type f -regextype egrep \
            ! -regex '.*/(llc|stp|dummy|loop|qemu_fw_cfg)\.ko(\.xz)?' -delete
        basename "$(readlink modules)" > release
    )
    mv "$dir.part" "$dir"
}

dbg=
[ "${1-}" = --dbg ] && { dbg=y; shift; }
[ $# -gt 0 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
for name; do
    row=$(awk -F'\t' -v name="$name" '$1 == name' "$here/kernels.tsv")
    [ "$row" ] || { echo "no kernel $name in kernels.tsv" >&2; exit 2; }
    IFS=$'\t' read -r _ arch suite package <<< "$row"
    dir=$cache/kernels/$name
    [ -e "$dir/release" ] || fetch "$name" "$arch" "$suite" "$package"
    if [ "$dbg" ] && [ ! -e "$dir/dbg" ]; then
        apt_setup "$suite" "$arch"
        rm -rf "$dir/dbg.part"
        unpack "$(cat "$dir/image")-dbg" "$dir/dbg.part"
        mv "$dir/dbg.part" "$dir/dbg"
    fi
    printf '%-16s %-28s %s\n' "$name" "$(cat "$dir/release")" \
        "$(grep -E '^CONFIG_(DEBUG_INFO_BTF|DEBUG_INFO_BTF_MODULES|X86_PAE|X86_5LEVEL|PREEMPT_RT|KALLSYMS_ALL)=y' \
            "$dir/config" | sed 's/.*CONFIG_\(.*\)=y/\1/' | tr '\n' ' ')"
    if [ ! -e "$cache/busybox/$arch/packages" ]; then
        apt_setup bookworm "$arch"
        rm -rf "$cache/busybox/$arch"
        unpack busybox-static "$cache/busybox/$arch"
    fi
done
