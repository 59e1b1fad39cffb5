#!/bin/sh
# Makes .venv with the first Python >= 3.11 it finds (or with $PYTHON), and says
# what to do when the machine has none. Plain sh: it runs before anything of ours
# is installed.
set -eu

say() { printf '%s\n' "$*" >&2; }

find_python() {
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

# Prints what to put before apt-get, or fails where packages cannot be installed.
apt_as() {
    command -v apt-get >/dev/null 2>&1 || return 1
    if [ "$(id -u)" -eq 0 ]; then
        printf 'env'
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        printf 'sudo'
    else
        return 1
    fi
}

if ! python=$(find_python); then
    say "Backchannel needs Python 3.11 or newer, and found none."
    say "  found: $(python3 --version 2>&1 || true)"
    say "  remedy: install one (Debian 12, Ubuntu 24.04 or newer: apt-get install python3),"
    say "          or name it: make PYTHON=/path/to/python3.11 ..."
    exit 1
fi

# Debian and Ubuntu ship Python without what makes a virtual environment.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if as=$(apt_as); then
        say "Installing $package, which $python lacks."
        export DEBIAN_FRONTEND=noninteractive
        install="$as apt-get install --yes --quiet --no-install-recommends $package"
        # The package lists of a fresh machine are empty or old.
        $install >/dev/null 2>&1 || { $as apt-get update --quiet && $install; } >&2
    else
        say "$python cannot make virtual environments, and packages cannot be installed from here."
        say "  remedy: apt-get install $package   (as root), then run make again"
        exit 1
    fi
fi

# Half an environment is worse than none: it would look finished to make.
trap 'rm -rf .venv' EXIT
"$python" -m venv --clear .venv
trap - EXIT
say "Made .venv with $("$python" --version)."
