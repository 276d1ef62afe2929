#!/usr/bin/env bash
# Runs a command with TUNING_BROWSER set to a Chromium that runs without a display.
# Usage: tests/tuning/with_browser.sh <command>
# Where there is none it is installed by apt-get where CI is set and this is root; elsewhere the command is skipped with
# a message.
set -euo pipefail

find_browser() {
    command -v chromium-headless-shell chromium chromium-browser google-chrome | head -n 1 || true
}

browser=$(find_browser)
if [ -z "$browser" ] && [ -n "${CI:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium-headless-shell >/dev/null
    browser=$(find_browser)
fi
if [ -z "$browser" ]; then
    message="No Chromium or Chrome found: install Debian's package chromium-headless-shell."
    if [ -n "${CI:-}" ]; then echo "$message" >&2; exit 1; fi
    echo "Skipped: $message"
    exit 0
fi
TUNING_BROWSER=$browser "$@"
