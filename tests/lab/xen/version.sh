# shellcheck shell=bash disable=SC2034
# Sourced by the lab's scripts: which Xen is meant, and the Debian suite that has it.
version=${XEN_LAB_VERSION:-4.17}
case $version in
4.17) suite=bookworm ;;
4.20) suite=trixie ;;
*) echo "XEN_LAB_VERSION=$version: 4.17 or 4.20" >&2; exit 3 ;;
esac
