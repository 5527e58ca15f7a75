#!/usr/bin/env bash
# Set up a virtual environment with one pinned stack and this checkout in it; what is done already is skipped.
# Usage: tools/misc/setup_env.sh STACK VENV     (STACK: a folder of requirements/; PYTHON chooses the interpreter)
set -euo pipefail
cd "$(dirname "$0")/../.."
stack=$1 venv=$2
pins=requirements/$stack
[ -d "$pins" ] || { echo "STACK must be one of: $(ls -d requirements/*/ | xargs -n1 basename | xargs), got '$stack'" >&2; exit 2; }

stamp=$venv/.mmext-packages-$(cat "$pins"/*.txt requirements/extra.txt "$0" | sha256sum | cut -c1-12)
if [ ! -f "$stamp" ]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        { echo "mmext needs Python 3.10 or newer, $python is $("$python" -V 2>&1); set PYTHON to another one" >&2; exit 2; }
    "$python" -m venv "$venv"
    pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
    echo "== $stack: torch"
    pip install --upgrade pip
    pip install -r "$pins/torch.txt"

    # mmcv has no wheels on the index. Its wheel fits one torch only, and pip's own cache does not know which: build
    # without that cache, into a folder whose name says what it was built against.
    key=$("$venv/bin/python" -c 'import sys, torch; print(f"torch-{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}")')
    wheels=${MMEXT_WHEELS:-${XDG_CACHE_HOME:-${HOME:-$PWD/build}/.cache}/mmext/wheels}/$key
    mmcv=$(cat "$pins/mmcv.txt")
    pattern=$(echo "$mmcv" | sed 's/-/_/; s/==/-/')-*.whl
    if ! compgen -G "$wheels/$pattern" >/dev/null; then
        echo "== $stack: building $mmcv with its ops against $key (about 7 minutes on two cores)"
        mkdir -p "$wheels"
        building=$(mktemp -d "$wheels/.building-XXXXXX") # beside its place: a move there is atomic
        MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} pip wheel --no-cache-dir --no-build-isolation --no-deps \
            --wheel-dir "$building" "$mmcv"
        mv "$building"/*.whl "$wheels/"
        rmdir "$building"
    fi
    pip install --no-deps --force-reinstall "$wheels"/$pattern
    echo "== $stack: mmengine, mmdet, mmseg, mmpretrain and the development tools"
    pip install -r "$pins/hosts.txt" -r requirements/extra.txt
    rm -f build/.mmext-self-*  # this environment does not have mmext yet
    touch "$stamp"
fi

# The extension lies in the checkout and fits one torch only: it belongs to the environment that was set up last.
stamp=build/.mmext-self-$(echo "$venv" | cat - setup.py pyproject.toml $(find cuda_ops -type f | sort) | sha256sum | cut -c1-12)
if [ ! -f "$stamp" ]; then
    echo "== $stack: mmext and its extension"
    "$venv/bin/python" -m pip --disable-pip-version-check --quiet install --no-build-isolation --no-deps --editable .
    mkdir -p build
    rm -f build/.mmext-self-*
    touch "$stamp"
fi
