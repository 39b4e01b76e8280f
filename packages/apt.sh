# Debian packages, some of them from bookworm-backports, without switching that source on for the system.
# Sourced by ./x and by the image recipes. The mirror and its key are those of the system's own sources.

apt_home=${XDG_CACHE_HOME:-$HOME/.cache}/fanlight/apt
# Our sources and lists, the system's keys and proxies. Nothing of it is written outside $apt_home.
apt_options=(
    -o Dir::Etc::SourceList=/dev/null
    -o Dir::Etc::SourceParts="$apt_home/sources"
    -o Dir::State::Lists="$apt_home/lists"
    -o Dir::Cache::pkgcache=
    -o Dir::Cache::srcpkgcache=
    -o APT::Sandbox::User=root
    -o DPkg::Lock::Timeout=600
)

# Turns the system's sources into ours: the Debian archive with updates and backports, and security as it is.
apt_sources() {
    local files=() file
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        if [ -r "$file" ]; then files+=("$file"); fi
    done
    rm -rf "$apt_home/sources"
    mkdir -p "$apt_home/sources" "$apt_home/lists/partial"
    awk -v out="$apt_home/sources" '
        BEGIN { suites = "bookworm bookworm-updates bookworm-backports" }
        # Other archives use our suite names too: ours is known by its path, its key or its mirror list.
        function is_debian(text) { return text ~ /\/debian\/?([ \t\n]|$)/ || text ~ /debian-archive|mirror\+file:/ }
        function is_security(text) { return text ~ /[: \t]bookworm-security([ \t\n\/]|$)/ }
        function stanza_ends() {
            if (stanza == "" || stanza ~ /\nEnabled: *no/ || stanza !~ /\nTypes:[^\n]*deb([ \t\n]|$)/) { }
            else if (is_security(stanza)) print stanza > (out "/security.sources")
            else if (stanza ~ /\nSuites:[^\n]*[: \t]bookworm([ \t\n]|$)/ && is_debian(stanza)) {
                sub(/\nSuites:[^\n]*/, "\nSuites: " suites, stanza)
                sub(/\nComponents:[^\n]*/, "\nComponents: main", stanza)
                sub(/\nTypes:[^\n]*/, "\nTypes: deb", stanza)
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
    if [ "${1-}" != now ] && [ -n "$(find "$apt_home/fresh" -mtime -1 2>/dev/null)" ]; then return; fi
    echo "  reading the package lists (bookworm and bookworm-backports)" >&2
    apt_sources
    apt-get "${apt_options[@]}" -qq update >&2
    touch "$apt_home/fresh"
}
