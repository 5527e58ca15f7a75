#!/usr/bin/env bash
# Build a copy of the package and run tests on it, so that the checkout's own extension stays as it is.
#   tools/misc/check_build.sh FOLDER PYTHON [VARIABLE=VALUE ...]      TESTS="tests" for the whole suite
set -euo pipefail
folder=$1 python=$(realpath --no-symlinks "$2")
shift 2
mark=.mmext-check
[ -z "$(ls -A "$folder" 2>/dev/null)" ] || [ -f "$folder/$mark" ] ||
    { echo "FOLDER holds other things ($folder); choose a new folder" >&2; exit 2; }
rm -rf "$folder"
mkdir -p "$folder"
touch "$folder/$mark"
tar -cf - --exclude=./build --exclude='./.venv*' --exclude=./.git --exclude=./data --exclude=./work_dirs --exclude='*.so' \
    --exclude='*.egg-info' --exclude=__pycache__ . | tar -xf - -C "$folder"
cd "$folder"
env "$@" "$python" setup.py -q build_ext --inplace
OMP_NUM_THREADS=1 "$python" -m pytest -q -n 2 ${TESTS:-tests/test_ops_*.py tests/test_setup.py}
