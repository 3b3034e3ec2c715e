#!/bin/bash
# Fetch makedumpfile of Debian trixie, which packs with Zstandard: makedumpfile.sh. Prints the command that starts it.
# It is unpacked below $VMI_LAB_CACHE with the libraries that it was built for, and never installed. Remove $VMI_LAB_CACHE/makedumpfile to fetch it anew.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=${VMI_LAB_CACHE:-$HOME/.cache/vmi-lab}
dir=$cache/makedumpfile
if [ ! -x "$dir/makedumpfile" ]; then
    . "$here/apt.sh"
    apt_setup trixie amd64
    rm -rf "$dir" "$dir.part"
    unpack "$dir.part" makedumpfile libc6 libdw1t64 libelf1t64 libzstd1 liblzo2-2 zlib1g libbz2-1.0 liblzma5
    cat > "$dir.part/makedumpfile" <<-'EOF'
	#!/bin/sh
	here=$(dirname "$(readlink -f "$0")")
	exec "$here/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" --library-path "$here/usr/lib/x86_64-linux-gnu" "$here/usr/bin/makedumpfile" "$@"
	EOF
    chmod +x "$dir.part/makedumpfile"
    version=$("$dir.part/makedumpfile" -v 2>&1)
    case $version in
    *"zstd"*enabled*) ;;
    *) echo "makedumpfile of trixie says here: $version" >&2; exit 1 ;;
    esac
    mv "$dir.part" "$dir"
fi
echo "$dir/makedumpfile"
