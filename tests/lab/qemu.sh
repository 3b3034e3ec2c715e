#!/bin/bash
# Fetch QEMU 10.0 of bookworm-backports: qemu.sh. Prints the command that starts it.
# It is unpacked below $VMI_LAB_CACHE beside the machine's own QEMU, whose firmware it uses, and never installed.
# Remove $VMI_LAB_CACHE/qemu/10.0 to fetch it anew.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=${VMI_LAB_CACHE:-$HOME/.cache/vmi-lab}
dir=$cache/qemu/10.0
if [ ! -x "$dir/qemu" ]; then
    . "$here/apt.sh"
    apt_setup bookworm-backports amd64
    rm -rf "$dir" "$dir.part"
    unpack "$dir.part" qemu-system-x86 qemu-system-common qemu-system-data
    cat > "$dir.part/qemu" <<-'EOF'
	#!/bin/sh
	here=$(dirname "$(readlink -f "$0")")
	export QEMU_MODULE_DIR="$here/usr/lib/x86_64-linux-gnu/qemu"
	exec "$here/usr/bin/qemu-system-x86_64" -L "$here/usr/share/qemu" -L /usr/share/seabios -L /usr/lib/ipxe/qemu "$@"
	EOF
    chmod +x "$dir.part/qemu"
    # it needs the shared libraries of Debian 12
    version=$("$dir.part/qemu" --version 2>&1 | head -1)
    case $version in
    *"version 10.0."*) ;;
    *) echo "QEMU of bookworm-backports says here: $version" >&2; exit 1 ;;
    esac
    mv "$dir.part" "$dir"
fi
echo "$dir/qemu"
