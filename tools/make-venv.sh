#!/bin/sh
# Make a virtual environment unless it is there: make-venv.sh PYTHON FOLDER
set -eu
python=$1
folder=$2

[ -x "$folder/bin/python" ] && "$folder/bin/python" -m pip --version >/dev/null 2>&1 && exit 0

if ! command -v "$python" >/dev/null 2>&1; then
    echo "error: no Python found under the name '$python'." >&2
    echo "   do: install Python 3.11 or newer, or say which one: make PYTHON=/path/to/python3.11 ..." >&2
    exit 6
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: cspine needs Python 3.11 or newer, but '$python' is $("$python" --version 2>&1)." >&2
    echo "   do: install a newer one and say which: make PYTHON=/path/to/python3.11 ..." >&2
    exit 6
fi
# Debian and Ubuntu ship Python without the parts that make environments.
if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "error: '$python' cannot make virtual environments: its venv or ensurepip module is missing." >&2
    echo "   do: on Debian or Ubuntu: apt-get install python$version-venv" >&2
    exit 6
fi
echo "making the environment $folder"
"$python" -m venv "$folder"
