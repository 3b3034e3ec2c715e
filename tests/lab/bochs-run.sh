#!/bin/bash
# Run Bochs: bochs-run.sh CD-IMAGE MEMORY DIRECTORY
# It boots the image with so many MiB. DIRECTORY gets what the serial ports say, `console` and `out`, and Bochs' own files. This is Bochs from then on: it ends by
# being killed.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
image=$1 memory=$2 work=$3
read -r bochs bios <<< "$("$here/bochs.sh")"
cat > "$work/bochsrc" <<-RC
	display_library: rfb, options="timeout=0"
	cpu: model=corei7_skylake_x, count=1, ips=300000000, ignore_bad_msrs=1
	memory: guest=$memory, host=$memory
	romimage: file=$bios/BIOS-bochs-latest
	vgaromimage: file=$bios/VGABIOS-lgpl-latest
	ata0-master: type=cdrom, path=$image, status=inserted
	boot: cdrom
	clock: sync=none, time0=local
	com1: enabled=1, mode=file, dev=$work/console
	com2: enabled=1, mode=file, dev=$work/out
	log: $work/bochs.log
	panic: action=fatal
	error: action=ignore
	info: action=ignore
RC
echo c > "$work/debugger" # Debian's build has Bochs' debugger, which waits for: continue
options=()
[[ $("$bochs" --help 2>&1 || true) != *' -rc '* ]] || options=(-rc "$work/debugger")
exec "$bochs" -q "${options[@]}" -f "$work/bochsrc"
