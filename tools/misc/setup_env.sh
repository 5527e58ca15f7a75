#!/usr/bin/env bash
# Set up a virtual environment with one pinned stack and this checkout in it; what is done already is skipped.
# Usage: tools/misc/setup_env.sh STACK VENV     (STACK: a folder of requirements/; PYTHON chooses the interpreter)
set -euo pipefail
cd "$(dirname "$0")/../.."
fail() { echo "$1" >&2; exit 2; }
[ $# = 2 ] || fail 'usage: tools/misc/setup_env.sh STACK VENV'
stack=$1 venv=$2
pins=requirements/$stack
[ -f "$pins/torch.txt" ] || fail "STACK must be one of: $(ls -d requirements/*/ | xargs -n1 basename | xargs), got '$stack'"
[ -z "$(ls -A "$venv" 2>/dev/null)" ] || [ -f "$venv/pyvenv.cfg" ] ||
    fail "VENV is a folder of other things ($venv); choose a new folder"
wheels=${MMEXT_WHEELS:-${XDG_CACHE_HOME:-${HOME:-$PWD/build}/.cache}/mmext/wheels}
writable() { { mkdir -p "$1" && [ -w "$1" ]; } 2>/dev/null || fail "cannot write to $1; $2"; }
writable "$venv" 'choose another folder with VENV'
writable "$wheels" 'choose another folder with MMEXT_WHEELS'
writable build 'use a checkout that you can write to'

stamp=$venv/.mmext-packages-$(cat "$pins"/*.txt requirements/extra.txt "$0" | sha256sum | cut -c1-12)
if [ ! -f "$stamp" ]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "mmext needs Python 3.10 or newer, $python is $("$python" -V 2>&1); set PYTHON to another one"
    "$python" -m venv "$venv"
    pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
    echo "== $stack: torch"
    pip install --upgrade pip
    pip install -r "$pins/torch.txt"

    # mmcv has no wheels on the index. Its wheel fits one torch only, and pip's own cache does not know which: build
    # without that cache, into a folder whose name says what it was built against.
    key=$("$venv/bin/python" - <<'END'
import os, sys, torch
cuda = '-cuda' if torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1' else ''
print(f'torch-{torch.__version__}-cp{sys.version_info[0]}{sys.version_info[1]}{cuda}')
END
    )
    wheels=$wheels/$key
    mmcv=$(cat "$pins/mmcv.txt")
    pattern=$(echo "$mmcv" | sed 's/-/_/; s/==/-/')-*.whl
    if ! compgen -G "$wheels/$pattern" >/dev/null; then
        echo "== $stack: building $mmcv with its ops against $key (about 7 minutes on two cores)"
        mkdir -p "$wheels"
        building=$(mktemp -d "$wheels/.building-XXXXXX") # beside its place: a move there is atomic
        compilers=$(mktemp -d)
        trap 'rm -rf "$building" "$compilers"' EXIT
        tools/misc/torch_std.sh "$venv/bin/python" "$compilers"
        (
            export CXX=$compilers/c++ MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)}
            [ ! -x "$compilers/nvcc" ] || export PYTORCH_NVCC=$compilers/nvcc
            pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir "$building" "$mmcv"
        )
        mv "$building"/*.whl "$wheels/"
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
    rm -f build/.mmext-self-*
    touch "$stamp"
fi
