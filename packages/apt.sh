# shellcheck shell=bash
# Debian packages, some of them from bookworm-backports, without switching that source on for the system.
# Sourced by ./x and by the image recipes. The mirror and its key are those of the system's own sources.

apt_home=${XDG_CACHE_HOME:-$HOME/.cache}/fanlight/apt
apt_conf=$apt_home/apt.conf

# The list files hold one package per line; after # stands the command that it brings, if it brings one.
commands_in() { sed -n 's/^[^#].*# *//p' "$@"; }

# Prints those of the listed packages that are not installed, or not from where they should be.
packages_missing() { # list file...
    local names name installed
    mapfile -t names < <(sed 's/ *#.*//; /^$/d' "$@" | sort -u)
    installed=$(dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\n' "${names[@]%%/*}" 2>/dev/null || true)
    for name in "${names[@]}"; do
        case $name in
        */bookworm-backports) grep -q "^${name%%/*} .*~bpo12+.* installed$" <<<"$installed" || echo "$name" ;;
        *) grep -q "^$name .* installed$" <<<"$installed" || echo "$name" ;;
        esac
    done
}

packages_install() {
    local as_root=(env DEBIAN_FRONTEND=noninteractive) plain=() backports=() name
    if [ "$(id -u)" != 0 ]; then as_root=(sudo "${as_root[@]}"); fi
    for name in "$@"; do
        case $name in
        */bookworm-backports) backports+=("${name%%/*}") ;;
        *) plain+=("$name") ;;
        esac
    done
    local install=("${as_root[@]}" apt-get -c "$apt_conf" -q -y -o Dpkg::Use-Pty=0 --no-install-recommends install)
    [ ${#plain[@]} = 0 ] || "${install[@]}" "${plain[@]}" || return
    [ ${#backports[@]} = 0 ] || "${install[@]}" -t bookworm-backports "${backports[@]}" || return
}

# Our sources and lists, the system's keys and proxies. Nothing of it is written outside $apt_home.
apt_configure() {
    mkdir -p "$apt_home/lists/partial"
    cat >"$apt_conf" <<END
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "$apt_home/sources";
Dir::State::Lists "$apt_home/lists";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Sandbox::User "root";
DPkg::Lock::Timeout "600";
Acquire::Retries "3";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
END
    apt_sources
}

# Turns the system's sources into ours: the Debian archive with updates and backports, and security as it is.
apt_sources() {
    local files=() file
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        if [ -r "$file" ]; then files+=("$file"); fi
    done
    rm -rf "$apt_home/sources"
    mkdir -p "$apt_home/sources"
    awk -v out="$apt_home/sources" '
        BEGIN { suites = "bookworm bookworm-updates bookworm-backports" }
        # Other archives use our suite names too: ours is known by its path, its key or its mirror list. The first will do.
        function is_debian(text) {
            return text ~ /[ \t]main([ \t\n]|$)/ && text ~ /\/debian\/?[ \t\n]|debian-archive|mirror\+file:/ && !found++
        }
        function is_security(text) { return text ~ /[: \t]bookworm-security([ \t\n\/]|$)/ }
        function stanza_ends() {
            if (stanza ~ /\nEnabled: *no/ || stanza !~ /\nTypes:[^\n]*[: \t]deb([ \t\n]|$)/) { stanza = ""; return }
            sub(/\nTypes:[^\n]*/, "\nTypes: deb", stanza)
            if (is_security(stanza)) print stanza > (out "/security.sources")
            else if (stanza ~ /\nSuites:[^\n]*[: \t]bookworm([ \t\n]|$)/ && is_debian(stanza)) {
                sub(/\nSuites:[^\n]*(\n[ \t][^\n]*)*/, "\nSuites: " suites, stanza)
                sub(/\nComponents:[^\n]*(\n[ \t][^\n]*)*/, "\nComponents: main", stanza)
                print stanza > (out "/debian.sources")
            }
            stanza = ""
        }
        FNR == 1 { stanza_ends() }
        /^#/ { next }
        FILENAME ~ /\.sources$/ { if ($0 ~ /^[ \t]*$/) stanza_ends(); else stanza = stanza "\n" $0; next }
        $1 != "deb" || /cdrom:/ { next }
        is_security($0) { print > (out "/security.list"); next }
        $0 ~ /[ \t]bookworm[ \t]/ && is_debian($0) {
            sub(/[ \t]bookworm[ \t].*/, "")
            split(suites, each, " ")
            for (i = 1; i <= 3; i++) print $0, each[i], "main" > (out "/debian.list")
        }
        END { stanza_ends() }
    ' "${files[@]}" </dev/null
    if [ -z "$(ls "$apt_home/sources")" ]; then
        echo "no Debian 12 (bookworm) archive in /etc/apt/sources.list or /etc/apt/sources.list.d; add one and try again" >&2
        return 1
    fi
}

# Brings our lists up to date, unless they are younger than a day or $1 is "now".
apt_refresh() {
    if [ "${1-}" != now ] && [ "$apt_home/fresh" -nt "${BASH_SOURCE[0]}" ] &&
        [ -n "$(find "$apt_home/fresh" -mtime -1)" ]; then
        return
    fi
    apt_configure
    echo "reading the package lists of bookworm and bookworm-backports" >&2
    apt-get -c "$apt_conf" -q update >&2
    touch "$apt_home/fresh"
}
