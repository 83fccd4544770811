#!/usr/bin/env bash
# Fetches NVRTC, NVIDIA's compiler, as a Python wheel, so that every kernel can be compiled on a machine
# that has neither CUDA nor a card: engine/tests/nvrtc.rs uses it. It goes to <target folder>/cuda-wheels;
# what is there already is left as it is. Further packages may be named, such as nvidia-nccl-cu12.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder="${CARGO_TARGET_DIR:-target}/cuda-wheels"
wanted=(nvidia-cuda-nvrtc-cu12==12.9.86 "$@")

mkdir -p "$folder"
for package in "${wanted[@]}"; do
    mark="$folder/.have-$package"
    [ -e "$mark" ] && continue
    if command -v uv >/dev/null; then
        uv pip install --quiet --target "$folder" --no-deps --only-binary :all: "$package"
    elif python3 -m pip --version >/dev/null 2>&1; then
        # Into a folder of its own, then together: pip would leave out, or replace, the `nvidia` that is there.
        rm -rf "$folder.new"
        python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
            --target "$folder.new" --no-deps --only-binary :all: "$package"
        cp -R "$folder.new/." "$folder/"
        rm -rf "$folder.new"
    else
        echo "error: neither uv nor pip is here to fetch $package" >&2
        echo "hint: install uv, or Debian's python3-pip" >&2
        exit 1
    fi
    touch "$mark"
done
echo "$folder"
