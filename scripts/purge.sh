#!/bin/sh
# Removes every instance that `make up` made, and the installation.
set -eu
if [ -x /usr/local/bin/sandkeep ]; then
    sandkeep purge --yes
    if ls /etc/sandkeep/*.toml >/dev/null 2>&1; then
        echo "purge: other instances remain, so the installation stays: $(ls /etc/sandkeep)" >&2
        exit 0
    fi
fi
echo "purge: removing /opt/sandkeep and /usr/local/bin/sandkeep" >&2
rm -rf /opt/sandkeep /usr/local/bin/sandkeep
rmdir /etc/sandkeep /var/lib/sandkeep /var/log/sandkeep /run/sandkeep 2>/dev/null || true
