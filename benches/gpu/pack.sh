#!/usr/bin/env bash
# Gathers all that benches/gpu/check.sh needs on a GPU machine that can reach nothing: the programs with CUDA, Open MPI,
# oneDNN, a small preprocessed dataset, and an NCCL that lets two ranks share a GPU if one is given.
#   benches/gpu/pack.sh [-n LIBNCCL] [FOLDER]     builds, fills FOLDER (default: gpu-pack), makes FOLDER.tar.xz
# LIBNCCL is a libnccl.so.2 of NCCL 2.30 or newer; the whole library has 340 MB, of which one GPU architecture needs 50.
set -euo pipefail
cd "$(dirname "$0")/../.."
nccl=
while getopts n: option; do
    case $option in
    n) nccl=$OPTARG ;;
    *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
pack=${1:-gpu-pack}
target=${CARGO_TARGET_DIR:-target}

cargo build --locked --release --workspace --features nnunet-dist/cuda
# The benchmark's name ends in a hash.
nccl_bench=$(cargo bench --locked --no-run --features cuda --bench nccl 2>&1 | sed -n 's/.*(\(.*nccl-[0-9a-f]*\))$/\1/p')

rm -rf "$pack"
mkdir -p "$pack"/{bin,lib,mpi/bin,mpi/lib/openmpi,mpi/lib/pmix,mpi/share}
cp "$target"/release/{nnunet-dist,nnunet-launch} "$pack/bin/"
cp "$nccl_bench" "$pack/bin/nccl"

# Open MPI and PMIx with the plugins that one host needs; those for other networks bring large libraries along.
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

# The libraries of all these but the C library's own, and oneDNN, which is opened at run time.
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
"$pack/bin/nnunet-dist" -q phantom -o "$pack/raw" --train 10 --test 0 --shape 40,56,40
"$pack/bin/nnunet-dist" -q plan -d "$pack/raw" -w "$pack/work" -c 3d_fullres
"$pack/bin/nnunet-dist" -q preprocess -w "$pack/work" -c 3d_fullres
cp benches/gpu/check.sh "$pack/"
git rev-parse --short HEAD >"$pack/commit"
tar -C "$pack" -cJf "$pack.tar.xz" .
du -sh "$pack" "$pack.tar.xz"
