#!/bin/bash
# Fetch kernels of kernels.tsv and a static busybox: kernels.sh [--dbg] KERNEL...
# Packages are unpacked below $VMI_LAB_CACHE, never installed, and what is already there costs no network.
# A kernel that moved on is fetched anew when its directory in $VMI_LAB_CACHE/kernels is removed.
# --dbg also fetches the debug packages (vmlinux with DWARF, 0.3 GB to download and more than 1 GB unpacked each).
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=${VMI_LAB_CACHE:-$HOME/.cache/vmi-lab}
. "$here/apt.sh"

closure() { # package: it, and those of the packages into which newer releases split it that the mirror still has
    echo "$1"
    APT_CONFIG=$conf apt-cache depends --no-recommends --no-suggests "$1" |
        sed -nE 's/^ *Depends: (linux-(modules|binary|base)-[0-9]\S+)$/\1/p'
}

fetch() { # name arch suite pattern
    local name=$1 arch=$2 dir=$cache/kernels/$1 image packages p
    apt_setup "$3" "$arch"
    rm -rf "$dir" "$dir.part"
    # a mirror's index may name a package that the mirror does not have any more, or not yet: take the next older one
    for image in $(APT_CONFIG=$conf apt-cache pkgnames linux-image- | grep -xE "$4" | sort -rV | head -3) ''; do
        [ "$image" ] || { echo "$name: the mirror has no package $4 of suite $3" >&2; exit 1; }
        packages=$(closure "$image")
        # shellcheck disable=SC2086
        if download $packages > /dev/null; then break; fi
    done
    # shellcheck disable=SC2086
    unpack "$dir.part" $packages
    echo "$image" > "$dir.part/image"
    echo "$arch" > "$dir.part/arch"
    p=${image#linux-image-}
    echo "${p%-unsigned}" > "$dir.part/release"
    (   # the same names whichever way the release lays its packages out; of the modules, the lab's only
        cd "$dir.part"
        ln -s "$(find . -name 'vmlinuz*' -type f)" vmlinuz
        modules=$(find . -path '*/modules/*' -prune -o -path '*/lib/modules' -print)
        [ "$modules" ] || { echo "$name: no modules on the mirror" >&2; modules=usr/lib/modules; mkdir -p "$modules/none"; }
        ln -s "$modules"/* modules
        find . -path ./modules -prune -o \( -name 'config-*' -o -path '*/modules/*/config' \) -type f -exec ln -s {} config \;
        find . -name '*.ko*' -type f -regextype egrep \
            ! -regex '.*/(llc|stp|dummy|loop|qemu_fw_cfg)\.ko(\.xz|\.zst)?' -delete
    )
    mv "$dir.part" "$dir"
}

dbg=
[ "${1-}" = --dbg ] && { dbg=y; shift; }
[ $# -gt 0 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
for name; do
    row=$(awk -F'\t' -v name="$name" '$1 == name' "$here/kernels.tsv")
    [ "$row" ] || { echo "no kernel $name in kernels.tsv" >&2; exit 2; }
    IFS=$'\t' read -r _ arch suite package <<< "$row"
    dir=$cache/kernels/$name
    [ -e "$dir/release" ] || fetch "$name" "$arch" "$suite" "$package"
    if [ "$dbg" ] && [ ! -e "$dir/dbg" ]; then
        apt_setup "$suite" "$arch"
        rm -rf "$dir/dbg.part"
        unpack "$dir/dbg.part" "$(cat "$dir/image")-dbg"
        mv "$dir/dbg.part" "$dir/dbg"
    fi
    printf '%-16s %-28s %s\n' "$name" "$(cat "$dir/release")" \
        "$(grep -sE '^CONFIG_(DEBUG_INFO_BTF|DEBUG_INFO_BTF_MODULES|X86_PAE|X86_5LEVEL|PREEMPT_RT|KALLSYMS_ALL)=y' \
            "$dir/config" | sed 's/.*CONFIG_\(.*\)=y/\1/' | tr '\n' ' ' || true)"
    if [ ! -e "$cache/busybox/$arch/packages" ]; then
        apt_setup bookworm "$arch"
        rm -rf "$cache/busybox/$arch"
        unpack "$cache/busybox/$arch" busybox-static
    fi
done
