#!/usr/bin/env bash
# Compares nnunet-dist with Python programs on the same work: `benches/peers/run.sh [--record] [ROW…]`, or `make bench`.
#
# Builds the release programs and makes a virtual environment for the peers, unless NNUNET_DIST_BIN and NNUNET_BENCH_VENV
# name existing ones. The machine should be idle otherwise. All rows take about 45 minutes on two cores.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
venv=${NNUNET_BENCH_VENV:-$target/venv-peers}

if [[ -z ${NNUNET_DIST_BIN:-} ]]; then
    (cd "$root" && cargo build --locked --release --workspace --bins)
    export NNUNET_DIST_BIN=$target/release/nnunet-dist
fi
if ! "$venv/bin/python" -c 'import torch, nnunetv2, batchgeneratorsv2, safetensors' 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet torch --index-url https://download.pytorch.org/whl/cpu ||
        "$venv/bin/pip" install --quiet torch
    "$venv/bin/pip" install --quiet 'nnunetv2==2.8.1' 'batchgeneratorsv2==0.3.6' safetensors
fi
exec "$venv/bin/python" "$here/compare.py" "$@"
