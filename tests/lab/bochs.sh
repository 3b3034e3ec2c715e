#!/bin/bash
# Fetch Bochs 3.0 of Debian trixie, which emulates Intel's VMX with EPT, the monitor trap flag and VMFUNC: bochs.sh
# Prints the program and the directory of its BIOS. Unpacked with libraries of its own below $VMI_LAB_CACHE, never installed.
# Needs root and debootstrap; about a minute, 700 MB on disk. Remove $VMI_LAB_CACHE/bochs to fetch it anew.
set -euo pipefail
cache=${VMI_LAB_CACHE:-$HOME/.cache/vmi-lab}
dir=$cache/bochs
mkdir -p "$cache"
exec 9> "$cache/bochs.lock"
flock 9
if [ ! -x "$dir/run" ]; then
    command -v debootstrap > /dev/null || { echo "the lab needs debootstrap: apt-get install debootstrap" >&2; exit 3; }
    rm -rf "$dir" "$dir.part"
    mkdir -p "$dir.part"
    # Desktop libraries cannot be configured in a bare tree. Their files are all that is needed.
    debootstrap --variant=minbase --include=bochs,bochs-term,bochsbios,vgabios trixie "$dir.part/tree" \
        ${VMI_LAB_MIRROR:+"$VMI_LAB_MIRROR/debian"} > "$dir.part/log" 2>&1 || true
    [ -x "$dir.part/tree/usr/bin/bochs-bin" ] || { tail -5 "$dir.part/log" >&2; exit 1; }
    cat > "$dir.part/run" <<-'RUN'
	#!/bin/bash
	# run BOCHSRC: Debian's build has no display "nogui"; that of VNC, which waits for nobody, takes its place.
	here=$(dirname "$(readlink -f "$0")") lib=$here/tree/usr/lib/x86_64-linux-gnu
	export LTDL_LIBRARY_PATH=$lib/bochs/plugins
	exec "$here/tree/lib64/ld-linux-x86-64.so.2" --library-path "$lib:$lib/pulseaudio" "$here/tree/usr/bin/bochs-bin" "$@"
	RUN
    chmod +x "$dir.part/run"
    mv "$dir.part" "$dir"
fi
echo "$dir/run $dir/tree/usr/share/bochs"
