#!/usr/bin/env bash
# Collects the files that benches/gpu/check.sh needs on a GPU machine without a network: the programs and tests with CUDA,
# Open MPI, oneDNN, reference outputs and a few real cases if available, a small preprocessed dataset, and an NCCL
# that allows two ranks to share a GPU, if one is given.
#   benches/gpu/pack.sh [-n LIBNCCL] [FOLDER]     builds, fills FOLDER (default: dist/gpu-pack), makes FOLDER.tar.xz
# LIBNCCL is a libnccl.so.2 of NCCL 2.30 or newer; the whole library has 340 MB, one GPU architecture needs 50.
# NNUNET_TEST_DATA (default ../shared) has the reference outputs and the Decathlon's hippocampus.
set -euo pipefail
cd "$(dirname "$0")/../.."
# Upload limit of the GPU machine.
limit_mib=60
cases=200
nccl=
while getopts n: option; do
    case $option in
    n) nccl=$OPTARG ;;
    *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
pack=${1:-dist/gpu-pack}
target=${CARGO_TARGET_DIR:-target}
shared=${NNUNET_TEST_DATA:-../shared}

# executable CARGO-ARGUMENTS...: builds without running, and prints the path of the program, whose name ends in a hash.
executable() {
    cargo "$@" --locked --no-run 2>&1 | tee /dev/stderr | sed -n 's/.*Executable.*(\(.*\))$/\1/p' | tail -n 1
}

cargo build --locked --release --features nnunet-dist/cuda
nccl_bench=$(executable bench --features cuda --bench nccl)
rm -rf "$pack"
mkdir -p "$pack"/{bin,lib,mpi/bin,mpi/lib/openmpi,mpi/lib/pmix,mpi/share,data}
cp "$target"/release/{nnunet-dist,nnunet-launch} "$pack/bin/"
cp "$nccl_bench" "$pack/bin/nccl"
cp "$(executable test --release --package gpu-tests --no-default-features --features cuda --test gpu)" "$pack/bin/gpu-tests"

# Open MPI and PMIx with the plugins for one host; those for other networks depend on large libraries.
for plugin in "$(dirname "$(find /usr/lib -name mca_btl_tcp.so -print -quit)")"/mca_*.so; do
    case $plugin in
    *ucx* | *ofi* | *psm* | *portals* | *cuda* | *usnic* | *openib* | *monitoring*) ;;
    *_io_* | *fcoll* | *_fs_* | *fbtl* | *sharedfp*) ;;
    *) cp "$plugin" "$pack/mpi/lib/openmpi/" ;;
    esac
done
find /usr/lib -name 'pmix_mca_*.so' -exec cp {} "$pack/mpi/lib/pmix/" \;
cp "$(readlink -f "$(command -v mpirun.openmpi || command -v mpirun)")" "$pack/mpi/bin/mpirun"
cp "$(command -v orted)" "$pack/mpi/bin/"
cp -r /usr/share/openmpi "$pack/mpi/share/"

# The shared libraries of all these except the C library's, and oneDNN, which is loaded at run time.
{
    find "$pack" -type f \( -perm -u+x -o -name '*.so' \) -print0 | xargs -0 ldd 2>/dev/null | awk '$2 == "=>" { print $3 }'
    ldconfig -p | awk '$1 ~ /^libdnnl\.so\.[0-9]/ { print $NF }'
} | sort -u | grep -vE '/(libc|libm|libdl|librt|libpthread|ld-linux[^/]*|libgcc_s|libstdc\+\+)\.so' |
    while read -r library; do
        [ -e "$library" ] && cp -L "$library" "$pack/lib/"
    done
strip --strip-unneeded "$pack"/bin/* "$pack"/lib/*.so* 2>/dev/null || true
[ -z "$nccl" ] || cp -L "$nccl" "$pack/lib/libnccl.so.2"

# Ten phantoms, planned and preprocessed.
"$pack/bin/nnunet-dist" -q phantom -o "$pack/data/phantoms" --train 10 --test 0 --shape 40,56,40
"$pack/bin/nnunet-dist" -q plan -d "$pack/data/phantoms" -w "$pack/data/work" -c 3d_fullres
"$pack/bin/nnunet-dist" -q preprocess -w "$pack/data/work" -c 3d_fullres
if [ -d "$shared/fixtures/net" ]; then
    mkdir -p "$pack/data/fixtures"
    cp -r "$shared/fixtures/net" "$pack/data/fixtures/"
else
    echo "no reference outputs in $shared: networks are not compared with PyTorch" >&2
fi
task=$shared/data/Task04_Hippocampus
if [ -d "$task/imagesTr" ]; then
    mkdir -p "$pack/data/raw"/{imagesTr,labelsTr}
    python3 - "$task" "$pack/data/raw" $cases <<'X'
import json, shutil, sys
from pathlib import Path
task, raw, cases = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
description = json.loads((task / "dataset.json").read_text())
description["training"] = [case for case in description["training"] if (task / case["image"]).exists()][:cases]
description["test"], description["numTraining"], description["numTest"] = [], len(description["training"]), 0
for case in description["training"]:
    for path in case.values():
        shutil.copy(task / path, raw / path)
(raw / "dataset.json").write_text(json.dumps(description))
X
else
    echo "no hippocampus in $shared: the pack trains on phantoms" >&2
fi
cp benches/gpu/check.sh benches/gpu/ratio.py benches/peers/gpu_step.py "$pack/"
git rev-parse --short HEAD >"$pack/commit"
tar -C "$pack" -cJf "$pack.tar.xz" .
bytes=$(stat -c %s "$pack.tar.xz")
echo "$pack.tar.xz: $((bytes >> 20)) MiB"
if [ "$bytes" -gt $((limit_mib << 20)) ]; then
    echo "this is over the limit of $limit_mib MiB" >&2
    exit 1
fi
