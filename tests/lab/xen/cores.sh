#!/bin/bash
# Have xl write cores of a PVH and a PV domain: cores.sh. Prints the directory that has them: for each domain, NAME.core and what it said just before, NAME.ORDER.
# Five minutes once; they are kept in $VMI_LAB_CACHE/xen until this or what runs in the domains changes.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
dir=${VMI_LAB_CACHE:-$HOME/.cache/vmi-lab}/xen/cores
stamp=$(cat "$here"/{cores.sh,cores-in-dom0.sh,domu-init.sh,domu.c} | sha256sum | cut -c1-16)
if [ "$(cat "$dir/stamp" 2> /dev/null)" != "$stamp" ]; then
    work=$(mktemp -d "$dir.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    truncate -s 512M "$work/outbox" # a power of two, as the device wants
    XEN_LAB_DOMUS="pvh pv" XEN_LAB_OUTBOX=$work/outbox XEN_LAB_DOM0_MEMORY=768 XEN_LAB_TIMEOUT=${XEN_LAB_TIMEOUT:-2400} XEN_LAB_CMD_TIMEOUT=2000 \
        "$here/run-in-dom0.sh" "$here/cores-in-dom0.sh" >&2
    python3 - "$work" <<-'PYTHON'
	import struct, sys
	from pathlib import Path
	directory = Path(sys.argv[1])
	with open(directory / "outbox", "rb") as outbox:
	    at = 0
	    while True:
	        outbox.seek(at)
	        length, name = struct.unpack("<Q56s", outbox.read(64))
	        if not length:
	            break
	        (directory / Path(name.rstrip(b"\0").decode()).name).write_bytes(outbox.read(length))
	        at += (64 + length + 4095) // 4096 * 4096
	PYTHON
    rm "$work/outbox"
    ls "$work"/{pvh,pv}.{core,ps,modules,held,symbols,facts} > /dev/null
    echo "$stamp" > "$work/stamp"
    rm -rf "$dir"
    mv "$work" "$dir"
fi
echo "$dir"
