#!/bin/sh
# Installs this clone into /opt/sandkeep/<version>: Debian's python3, a venv, the locked dependencies, the wheel with the
# agent inside. Quick when nothing changed since the last time. Run as root from anywhere.
set -eu
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
home=/opt/sandkeep/$version

say() { printf 'install: %s\n' "$*" >&2; }
[ "$(id -u)" = 0 ] || { say "this needs root: run it with sudo"; exit 1; }

need=""
for package in python3 python3-venv ca-certificates; do
    [ -e "/var/lib/dpkg/info/$package.list" ] || need="$need $package"
done
if [ -n "$need" ]; then
    say "installing Debian packages:$need"
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $need >/dev/null
fi

stamp=$(find src agent pyproject.toml requirements.lock hatch_build.py -type f \( -name '*.py' -o -name '*.go' -o -name '*.toml' \
    -o -name '*.lock' -o -name 'go.mod' -o -name '*.mako' -o -name 'py.typed' \) -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-32)
if [ "$(cat "$home/installed" 2>/dev/null || true)" = "$stamp" ]; then
    say "$home is up to date"
else
    python=/usr/bin/python3
    [ -x "$python" ] || python=python3
    mkdir -p "$home"
    [ -x "$home/bin/python" ] || "$python" -m venv "$home"
    if ! cmp -s requirements.lock "$home/requirements.lock"; then
        say "installing the locked dependencies"
        "$home/bin/pip" install -q --disable-pip-version-check --require-hashes -r requirements.lock
        cp requirements.lock "$home/requirements.lock"
    fi
    say "building the wheel (compiles the agent)"
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels"' EXIT
    SANDKEEP_AGENT_ARCHS=${SANDKEEP_AGENT_ARCHS:-native} "$home/bin/pip" wheel -q --disable-pip-version-check --no-deps -w "$wheels" .
    "$home/bin/pip" install -q --disable-pip-version-check --no-deps --force-reinstall "$wheels"/sandkeep-*.whl
    printf '%s\n' "$stamp" > "$home/installed"
    say "installed into $home"
fi
ln -sfn "$home" /opt/sandkeep/.current.new
mv -fT /opt/sandkeep/.current.new /opt/sandkeep/current  # at once: there is never none
ln -sf /opt/sandkeep/current/bin/sandkeep /usr/local/bin/sandkeep
