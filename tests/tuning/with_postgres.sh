#!/usr/bin/env bash
# Runs a command with TUNING_POSTGRES_URL set to a PostgreSQL server of its own, in a temporary folder.
# Usage: tests/tuning/with_postgres.sh <command>
# Without the server's binaries they are installed by apt-get where CI is set and this is root; elsewhere the command is
# skipped with a message.
set -euo pipefail

find_binaries() {
    local folder
    for folder in "$(dirname "$(command -v initdb || true)")" $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV); do
        if [ -x "$folder/initdb" ] && [ -x "$folder/pg_ctl" ]; then
            # The server looks for its own files from where the link leads to.
            dirname "$(readlink -f "$folder/initdb")"
            return
        fi
    done
}

binaries=$(find_binaries)
if [ -z "$binaries" ] && [ -n "${CI:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >/dev/null
    binaries=$(find_binaries)
fi
if [ -z "$binaries" ]; then
    message="No PostgreSQL server (initdb, pg_ctl) found: install Debian's package postgresql."
    if [ -n "${CI:-}" ]; then echo "$message" >&2; exit 1; fi
    echo "Skipped: $message"
    exit 0
fi

folder=$(mktemp -d)
# The server refuses to run as root.
unprivileged() { "$@"; }
if [ "$(id -u)" = 0 ]; then
    user=nobody
    if id postgres >/dev/null 2>&1; then user=postgres; fi
    chown "$user" "$folder"
    unprivileged() { (cd / && setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups env HOME="$folder" "$@"); }
fi
stop() {
    unprivileged "$binaries/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1 || true
    rm -rf "$folder"
}
trap stop EXIT

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
unprivileged "$binaries/initdb" -D "$folder/data" -U tuner -A trust --no-sync --no-locale -E UTF8 >/dev/null
unprivileged "$binaries/pg_ctl" -D "$folder/data" -w -l "$folder/log" -o "-p $port -k $folder -h 127.0.0.1 -F" start >/dev/null ||
    { cat "$folder/log" >&2; exit 1; }
TUNING_POSTGRES_URL="postgresql://tuner@127.0.0.1:$port/postgres" "$@"
