#!/bin/bash
# Fetch the PE files of Debian's package libwine: wine.sh. Prints the directory that holds them.
# They are unpacked below $VMI_LAB_CACHE and never installed; nothing of them runs. Remove $VMI_LAB_CACHE/wine to fetch them anew.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=${VMI_LAB_CACHE:-$HOME/.cache/vmi-lab}
dir=$cache/wine
if [ ! -d "$dir" ]; then
    . "$here/apt.sh"
    apt_setup bookworm amd64
    rm -rf "$dir.part"
    unpack "$dir.part" libwine
    mv "$dir.part" "$dir"
fi
echo "$dir/usr/lib/x86_64-linux-gnu/wine/x86_64-windows"
