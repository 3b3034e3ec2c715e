# shellcheck shell=bash disable=SC2154,SC2016
# Sourced by the lab's scripts: packages of any Debian suite and architecture, unpacked below $cache and never
# installed; apt runs on private directories, so the machine's own sources and architectures stay as they are.
# The mirror is the one that this machine's own apt uses, unless VMI_LAB_MIRROR names another (scheme and host).
mirror=${VMI_LAB_MIRROR:-$(grep -rhoE '^(deb .*|URIs: *)https?://[^/ ]+/debian\b' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null |
    grep -oE 'https?://[^/ ]+' | head -1 || true)}
mirror=${mirror:-http://deb.debian.org}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

need() { # tool package: ends the script where a tool is missing
    [ -e "$1" ] || command -v "$1" > /dev/null || { echo "the lab needs $1: apt-get install $2" >&2; exit 3; }
}
need apt-get apt
need dpkg-deb dpkg
need $keyring debian-archive-keyring

apt_setup() { # suite arch: sets $conf, updating the private lists once a day
    local suite=$1 arch=$2 dir=$cache/apt/$1-$2 path=debian
    conf=$dir/apt.conf
    mkdir -p "$dir"/{lists/partial,cache/archives/partial,parts} "$cache/debs"
    case $suite in *-security) path=debian-security ;; esac
    echo "deb [signed-by=$keyring] $mirror/$path $suite main" > "$dir/sources.list"
    touch "$dir/status"
    cat > "$conf" <<-EOF
	Dir::Etc::SourceList "$dir/sources.list";
	Dir::Etc::SourceParts "$dir/parts";
	Dir::State::Lists "$dir/lists";
	Dir::State::Status "$dir/status";
	Dir::Cache "$dir/cache";
	APT::Architecture "$arch";
	#clear APT::Architectures;
	APT::Architectures { "$arch"; };
	APT::Sandbox::User "";
	APT::Update::Error-Mode "any";
	Acquire::Languages "none";
	Acquire::Check-Valid-Until "false";
	Acquire::Retries "3";
	EOF
    if [ -z "$(find "$dir/updated" -mtime -1 2>/dev/null)" ]; then
        APT_CONFIG=$conf apt-get -qq update && touch "$dir/updated"
    fi
}

download() { # package...: into $cache/debs; prints the names of the files
    local names
    if names=$(APT_CONFIG=$conf apt-get -qq --print-uris download "$@" | awk '{print $2}') &&
        (cd "$cache/debs" && APT_CONFIG=$conf apt-get -qq download "$@") >&2; then
        echo "$names"
    else
        rm -f "${conf%/*}/updated" # the mirror may have moved on: the lists are read anew the next time
        return 1
    fi
}

unpack() { # directory package...: also lists the packages in packages, and their sources in sources
    local directory=$1 names deb
    shift
    names=$(download "$@")
    mkdir -p "$directory"
    for deb in $names; do
        dpkg-deb -x "$cache/debs/$deb" "$directory"
        dpkg-deb -W --showformat='${Package} ${Version}\t${source:Package} ${source:Version}\t${Built-Using}\n' "$cache/debs/$deb" >> "$directory/sources"
        echo "$deb" >> "$directory/packages"
        rm "$cache/debs/$deb"
    done
}
