# shellcheck shell=bash disable=SC2154,SC2016
# Sourced by the lab's scripts: packages of any suite of Debian or Ubuntu ("ubuntu:focal") and any architecture, unpacked below
# $cache and never installed; apt runs on private directories, so the machine's own sources and architectures stay as they are.
# The mirror is the one that this machine's own apt uses, unless VMI_LAB_MIRROR names another (scheme and host). That of Ubuntu
# is VMI_LAB_UBUNTU_MIRROR, or else the same one if it has Ubuntu too, or else Ubuntu's own.
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
    local suite=$1 arch=$2 dir=$cache/apt/$1-$2 key=$keyring path=debian from hosts=$mirror
    conf=$dir/apt.conf
    case $suite in
    *-security) path=debian-security ;;
    ubuntu:*)
        ubuntu_keyring
        suite=${suite#ubuntu:} path=ubuntu key=$cache/ubuntu-keyring/usr/share/keyrings/ubuntu-archive-keyring.gpg
        hosts=${VMI_LAB_UBUNTU_MIRROR:-$mirror http://archive.ubuntu.com}
        dir=$cache/apt/ubuntu-$suite-$arch conf=$dir/apt.conf
        ;;
    esac
    mkdir -p "$dir"/{lists/partial,cache/archives/partial,parts} "$cache/debs"
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
	Acquire::http::Timeout "20";
	EOF
    [ -z "$(find "$dir/updated" -mtime -1 2>/dev/null)" ] || return 0
    for from in $hosts; do
        echo "deb [signed-by=$key] $from/$path $suite main" > "$dir/sources.list"
        if APT_CONFIG=$conf apt-get -qq update; then
            touch "$dir/updated"
            return
        fi
    done
    return 1
}

ubuntu_keyring() { # Debian has a package of Ubuntu's keys
    [ -e "$cache/ubuntu-keyring/packages" ] && return
    local conf
    apt_setup trixie amd64
    rm -rf "$cache/ubuntu-keyring"
    unpack "$cache/ubuntu-keyring" ubuntu-keyring
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
