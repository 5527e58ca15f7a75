#!/usr/bin/env bash
# Make compilers that take the C++ version from the headers of PYTHON's torch, whatever version their caller names.
# A package such as mmcv names one in its own setup, and a newer torch refuses it. CXX and PYTORCH_NVCC then name them.
# Usage: tools/misc/torch_std.sh PYTHON FOLDER      (writes FOLDER/c++ and, where there is an nvcc, FOLDER/nvcc)
set -euo pipefail
python=$1 folder=$2
torch=$("$python" -c 'from importlib.util import find_spec; print(find_spec("torch").submodule_search_locations[0])')
# __cplusplus is 201703 for C++17, 202002 for C++20, 202302 for C++23.
std=$(sed -n 's/.*__cplusplus < 20\([0-9][0-9]\).*/\1/p' "$torch/include/ATen/ATen.h" | head -n 1)
std=${std:-17}

wrap() { # nvcc takes one -std only, so the caller's goes
    cat >"$folder/$1" <<END
#!/usr/bin/env bash
for argument; do
    shift
    case \$argument in -std=*) ;; *) set -- "\$@" "\$argument" ;; esac
done
exec $2 "\$@" -std=c++$std
END
    chmod +x "$folder/$1"
}

wrap c++ "${CXX:-c++}"
nvcc=${PYTORCH_NVCC:-${CUDA_HOME:-/usr/local/cuda}/bin/nvcc}
[ -x "$nvcc" ] || nvcc=$(command -v nvcc || true)
[ -z "$nvcc" ] || wrap nvcc "$nvcc"
