#!/bin/sh
# Installs what the tests need and runs them (see the Makefile). `make up` before it or beside it changes nothing.
# `scripts/test.sh test ARGUMENTS` hands pytest its arguments; SANDKEEP_TEST_HOME: where to install, for a second checkout.
set -eu
cd "$(dirname "$0")/.."
home=${SANDKEEP_TEST_HOME:-/opt/sandkeep/test}
say() { printf 'test: %s\n' "$*" >&2; }
[ "$(id -u)" = 0 ] || { say "this needs root: run it with sudo"; exit 1; }

need=""
for package in python3 python3-venv ca-certificates btrfs-progs libnftables1 nftables mmdebstrap runc util-linux busybox-static \
    openssh-client git curl jq openssl postgresql; do
    [ -e "/var/lib/dpkg/info/$package.list" ] || [ -e "/var/lib/dpkg/info/$package:$(dpkg --print-architecture).list" ] || need="$need $package"
done
if [ -n "$need" ]; then
    say "installing Debian packages:$need"
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $need >/dev/null
fi

python=/usr/bin/python3
[ -x "$python" ] || python=python3
mkdir -p /opt/sandkeep
[ -x "$home/bin/python" ] || "$python" -m venv "$home"
if ! cmp -s requirements-test.lock "$home/requirements.lock"; then
    say "installing the locked dependencies"
    "$home/bin/pip" install -q --disable-pip-version-check --require-hashes -r requirements-test.lock
    cp requirements-test.lock "$home/requirements.lock"
fi
stamp=$(find src agent pyproject.toml hatch_build.py -type f -not -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-32)
if [ "$(cat "$home/installed" 2>/dev/null || true)" != "$stamp" ]; then
    say "building and installing the wheel"
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels"' EXIT
    SANDKEEP_AGENT_ARCHS=native "$home/bin/pip" wheel -q --disable-pip-version-check --no-deps -w "$wheels" .
    "$home/bin/pip" install -q --disable-pip-version-check --no-deps --force-reinstall "$wheels"/sandkeep-*.whl
    rm -rf "$wheels"  # some of what follows takes this shell's place
    printf '%s\n' "$stamp" > "$home/installed"
fi
export SANDKEEP_AGENT="${SANDKEEP_AGENT:-$("$home/bin/python" -c 'from sandkeep.app.agents import shipped_agent; print(shipped_agent())')}"
PATH=$home/bin:$PATH
export PATH PYTHONDONTWRITEBYTECODE=1

check() {
    ruff format --check -q src tests scripts
    ruff check -q src tests scripts
    mypy --no-error-summary
    lint-imports --no-cache >/dev/null || lint-imports --no-cache
}

# Everything, in three lanes: a machine that starts is waited for while another test computes. Ends the script.
lanes() {
    said=$(mktemp -d)
    trap 'kill -INT $beside 2>/dev/null || true; wait || true; rm -rf "$said"' EXIT
    trap 'exit 130' INT TERM HUP
    matrix=tests/system/test_crash_matrix.py
    [ "${SANDKEEP_TESTS:-}" != all ] || hangs="-o faulthandler_timeout=900"  # three long ones at once
    python -m pytest ${hangs:-} --durations=20 $matrix tests/agent tests/api tests/architecture tests/contracts tests/integration tests/unit >"$said/1" 2>&1 &
    beside=$!
    python -m pytest ${hangs:-} --durations=20 tests/system/test_[a-l]*.py --deselect $matrix >"$said/2" 2>&1 &
    beside="$beside $!"
    say "two more lanes write to $said and are shown at the end"
    status=0
    python -m pytest ${hangs:-} --durations=20 tests/system/test_[m-z]*.py || ended $?
    for lane in $beside; do
        wait "$lane" || ended $?
    done
    beside=""
    cat "$said"/*
    exit "$status"
}

# 5: no test was left to run, as where `make test-all` goes on.
ended() { [ "$1" = 5 ] && [ "${SANDKEEP_TESTS:-}" = all ] || status=$1; }

case "${1:-test}" in
check) check ;;
bench) shift; exec python tests/bench/run.py "$@" ;;
reference) python scripts/reference.py ;;
torture) shift; exec python tests/torture/run.py "$@" ;;
soak) shift; exec python tests/torture/soak.py "$@" ;;
*)
    [ $# = 0 ] || shift
    say "preparing the cached test template"
    recipes="test base"
    [ $# = 0 ] && [ "${SANDKEEP_TESTS:-}" != all ] || recipes="$recipes programs"
    (cd tests && python -m support.instance $recipes >/dev/null)
    REQUIRED=${REQUIRED:-btrfs,gvisor,runc,mmdebstrap,postgres}
    export REQUIRED
    [ $# != 0 ] || lanes
    exec python -m pytest "$@"
    ;;
esac
