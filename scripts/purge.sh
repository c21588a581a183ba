#!/bin/sh
# Removes what `make up` made: the instance, and the installation. Says before what goes, and does not ask. A folder of
# the tests beside it, and runtimes that the tests use too, stay.
set -eu
home=/opt/sandkeep
link=/usr/local/bin/sandkeep
say() { printf 'purge: %s\n' "$*" >&2; }
[ "$(id -u)" = 0 ] || { say "this needs root: run it with sudo"; exit 1; }

if [ -x "$link" ]; then
    "$link" purge --yes || [ $? = 3 ] # 3: there is no such instance, or not any more
    if ls /etc/sandkeep/*.toml >/dev/null 2>&1; then
        say "other instances remain, so the installation stays: $(ls /etc/sandkeep)"
        exit 0
    fi
fi

set --
for version in "$home"/*/; do
    version=${version%/}
    case ${version##*/} in test* | current) continue ;; esac
    [ ! -e "$version/installed" ] || set -- "$@" "$version"
done
[ ! -L "$home/current" ] || set -- "$@" "$home/current"
if [ -d "$home/runtimes" ]; then
    if ls -d "$home"/test* >/dev/null 2>&1; then
        say "$home/runtimes stays: the tests' installation beside it uses it"
    else
        set -- "$@" "$home/runtimes"
    fi
fi
[ "$(readlink "$link" || true)" != "$home/current/bin/sandkeep" ] || set -- "$@" "$link"
for each in "$@"; do
    say "removing $each"
done
[ $# = 0 ] || rm -rf -- "$@"
[ ! -d "$home" ] || rmdir "$home" 2>/dev/null || say "$home stays, with what is not of make up: $(ls "$home" | xargs)"
rmdir /etc/sandkeep /var/lib/sandkeep /var/log/sandkeep /run/sandkeep 2>/dev/null || true
