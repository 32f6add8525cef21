#!/usr/bin/env bash
# Runs everything that needs a GPU from a folder made by pack.sh, offline, and prints a table last.
#   check.sh [-n] [PACK [RESULTS]]     PACK: this script's folder; RESULTS: $OUT or PACK/results
#   -n   dry run: on a machine without a GPU, everything but the GPU; a check that needs one must fail with its clear line
# Exit code: 0 if every check passed, 1 otherwise. RESULTS has results.json, a line per check, and all output.
set -uo pipefail
dry=
if [ "${1:-}" = -n ]; then
    dry=1
    shift
fi
pack=$(cd "${1:-$(dirname "$0")}" && pwd)
results=${2:-${OUT:-$pack/results}}
mkdir -p "$results"
results=$(cd "$results" && pwd)
: >"$results/results.json"

export PATH=$pack/bin:$pack/mpi/bin:$PATH
export LD_LIBRARY_PATH=$pack/lib:$pack/mpi/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export OPAL_PREFIX=$pack/mpi OPAL_LIBDIR=$pack/mpi/lib OPAL_PKGLIBDIR=$pack/mpi/lib/openmpi
export OPAL_BINDIR=$pack/mpi/bin OPAL_DATADIR=$pack/mpi/share OPAL_PKGDATADIR=$pack/mpi/share/openmpi
export OMPI_MCA_mca_base_component_path=$pack/mpi/lib/openmpi PMIX_MCA_mca_base_component_path=$pack/mpi/lib/pmix
export OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader,tcp
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# NCCL of the pack, which is new enough for two ranks on a GPU; else the machine's.
[ ! -e "$pack/lib/libnccl.so.2" ] || export NNUNET_DIST_NCCL=$pack/lib/libnccl.so.2

rows=()
failed=0

# row NAME RESULT FIGURE
row() {
    rows+=("$(printf '%-34s %-6s %s' "$1" "$2" "$3")")
    printf '{"check": "%s", "result": "%s", "figure": "%s"}\n' "$1" "$2" "${3//\"/\'}" >>"$results/results.json"
    [ "$2" = FAIL ] && failed=1
    return 0
}

# check NAME FIGURE COMMAND...: runs a command that needs no GPU; FIGURE is a sed expression that finds its figure.
check() {
    local name=$1 figure=$2 log=$results/${1// /_}.log code
    shift 2
    echo "== $name: $*" >&2
    timeout -k 10 300 "$@" >"$log" 2>&1 </dev/null
    code=$?
    if [ $code = 0 ]; then
        row "$name" ok "$(sed -n "$figure" "$log" | tail -n 1)"
    else
        row "$name" FAIL "exit code $code: $(grep -m 1 -E 'error|panic' "$log" || tail -n 1 "$log")"
    fi
}

# check_gpu: as check; in a dry run the command must end with exit code 4 and say what is missing in one line.
check_gpu() {
    if [ -z "$dry" ]; then
        check "$@"
        return
    fi
    local name=$1 log=$results/${1// /_}.log code
    shift 2
    echo "== $name (dry run): $*" >&2
    timeout -k 10 300 "$@" >"$log" 2>&1 </dev/null
    code=$?
    if [ $code = 4 ] && grep -q '^error: ' "$log"; then
        row "$name" dry "$(grep -m 1 '^error: ' "$log")"
    else
        row "$name" FAIL "exit code $code without a clear line: $(tail -n 1 "$log")"
    fi
}


# The training of all checks, as a program for mpirun.
cat >"$results/train" <<X
#!/bin/sh
exec nnunet-dist train -w "$pack/work" -c 3d_fullres -f 0 --epochs 2 --iters-per-epoch 10 --val-iters 2 "\$@"
X
chmod +x "$results/train"
loss='s/.*"train_loss":\([0-9.e-]*\).*/\1/p'
last_loss() {
    sed -n "$loss" "$1/log.jsonl" 2>/dev/null | tail -n 1
}

check 'doctor' '/NCCL/{s/fix:.*//;p;}' nnunet-dist doctor
check 'MPI: two ranks on the CPU' 's/.*mean Dice/mean Dice/p' \
    mpirun -np 2 "$results/train" --batch-size 1 --run-dir "$results/cpu2"
check 'one rank on the CPU' 's/.*mean Dice/mean Dice/p' "$results/train" --batch-size 2 --run-dir "$results/cpu1"

check_gpu 'one rank on the GPU' 's/.*mean Dice/mean Dice/p' \
    "$results/train" --device cuda --batch-size 2 --run-dir "$results/gpu1"
check_gpu 'NCCL: one rank' 's/.*"algorithm_gb_per_s":\([0-9.]*\).*/\1 GB\/s/p' nccl 128 25
check_gpu 'NCCL: one rank, one bucket' 's/.*"algorithm_gb_per_s":\([0-9.]*\).*/\1 GB\/s/p' nccl 128 128

# Both ranks on the same GPU: experimental since NCCL 2.30.
export NCCL_MULTI_RANK_GPU_ENABLE=1 NNUNET_DIST_SHARE_GPUS=1
check_gpu 'NCCL: two ranks on one GPU' 's/.*"bus_gb_per_s":\([0-9.]*\).*/\1 GB\/s/p' mpirun -np 2 nccl 128 25
check_gpu 'two ranks on one GPU' 's/.*mean Dice/mean Dice/p' \
    mpirun -np 2 "$results/train" --device cuda --batch-size 1 --run-dir "$results/gpu2"
check_gpu 'two ranks, bf16 on the wire' 's/.*mean Dice/mean Dice/p' \
    mpirun -np 2 "$results/train" --device cuda --batch-size 1 --grad-compression bf16 --run-dir "$results/gpu2_bf16"
check_gpu 'scaling' '/^ *2 /p' nnunet-dist scale -w "$pack/work" -c 3d_fullres -f 0 --np 1,2 --device cuda \
    --batch-size 1 --steps 10 -o "$results/scaling"

# Losses of one and two ranks with the same global batch agree; on the GPU as far as its sums do.
compare() {
    local one two
    one=$(last_loss "$results/$2") two=$(last_loss "$results/$3")
    if awk -v a="$one" -v b="$two" -v t="$4" 'BEGIN { exit !(a != "" && b != "" && (a - b) ^ 2 <= t ^ 2) }'; then
        row "$1" ok "$one and $two"
    elif [ -n "$dry" ] && [ -z "$one$two" ]; then
        row "$1" dry 'nothing to compare'
    else
        row "$1" FAIL "$one and $two"
    fi
}
compare 'loss, CPU: one rank and two' cpu1 cpu2 0.001
compare 'loss, GPU: one rank and two' gpu1 gpu2 0.02
[ -n "$dry" ] || compare 'loss, CPU and GPU' cpu1 gpu1 0.05

echo
echo "commit $(cat "$pack/commit" 2>/dev/null), $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || echo no GPU), $(date -u +%F)"
printf '%s\n' "${rows[@]}"
exit $failed
