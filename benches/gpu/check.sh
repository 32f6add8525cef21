#!/usr/bin/env bash
# Runs all GPU checks offline, from a folder made by pack.sh, and prints a table at the end.
#   check.sh [-n] [-s SECTION,...] [PACK [RESULTS]]
#       PACK: this script's folder; RESULTS: $OUT or PACK/results
#   -n  dry run, on a machine without a GPU: GPU checks must fail with a clear one-line error
#   -s  only these sections: machine kernels step conv memory train infer nccl, and `long` (not in the default)
# Exit code: 0 if every check passed, 1 otherwise. RESULTS holds results.json and the output of every check.
set -uo pipefail
dry=
sections=machine,kernels,step,conv,memory,train,infer,nccl
while getopts ns: option; do
    case $option in
    n) dry=1 ;;
    s) sections=$OPTARG ;;
    *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
pack=$(cd "${1:-$(dirname "$0")}" && pwd)
results=${2:-${OUT:-$pack/results}}
mkdir -p "$results"
results=$(cd "$results" && pwd)
: >"$results/rows"

export PATH=$pack/bin:$pack/mpi/bin:$PATH
export LD_LIBRARY_PATH=$pack/lib:$pack/mpi/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export OPAL_PREFIX=$pack/mpi OPAL_LIBDIR=$pack/mpi/lib OPAL_PKGLIBDIR=$pack/mpi/lib/openmpi
export OPAL_BINDIR=$pack/mpi/bin OPAL_DATADIR=$pack/mpi/share OPAL_PKGDATADIR=$pack/mpi/share/openmpi
export OMPI_MCA_mca_base_component_path=$pack/mpi/lib/openmpi PMIX_MCA_mca_base_component_path=$pack/mpi/lib/pmix
export OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader,tcp
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export NNUNET_DIST_CACHE=$results/cache NNUNET_TEST_DATA=$pack/data
# cuDNN, NCCL and NVRTC as installed by pip with PyTorch; an NCCL in the pack allows two ranks to share a GPU.
site=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null)/nvidia
for folder in "$site"/*/lib; do
    [ -d "$folder" ] && LD_LIBRARY_PATH=$LD_LIBRARY_PATH:$folder
done
[ ! -d "$site/cudnn/lib" ] || export NNUNET_DIST_CUDNN=$site/cudnn/lib
[ ! -d "$site/nccl/lib" ] || export NNUNET_DIST_NCCL=$site/nccl/lib
[ ! -e "$pack/lib/libnccl.so.2" ] || export NNUNET_DIST_NCCL=$pack/lib/libnccl.so.2
[ -n "$dry" ] || export NNUNET_TEST_GPU=1

failed=0

# row NAME RESULT FIGURE
row() {
    printf '%s\t%s\t%s\n' "$1" "$2" "${3//[$'\t\n']/ }" >>"$results/rows"
    printf '   %-38s %-5s %s\n' "$1" "$2" "$3" >&2
    [ "$2" = FAIL ] && failed=1
    return 0
}

log_of() {
    echo "$results/${1//[^a-zA-Z0-9_.-]/_}.log"
}

# check NAME LIMIT FIGURE COMMAND...: LIMIT in seconds; FIGURE is a sed expression that extracts the figure.
check() {
    local name=$1 limit=$2 figure=$3 log code
    shift 3
    log=$(log_of "$name")
    timeout -k 10 "$limit" "$@" >"$log" 2>&1 </dev/null
    code=$?
    if [ $code = 0 ]; then
        row "$name" ok "$(sed -n "$figure" "$log" | tail -n 1)"
    else
        row "$name" FAIL "exit code $code: $(grep -m 1 -E 'error|panic' "$log" || tail -n 1 "$log")"
    fi
}

# check_gpu: as check; in a dry run the command must exit with code 4 and one line that names the missing part.
check_gpu() {
    if [ -z "$dry" ]; then
        check "$@"
        return
    fi
    local name=$1 limit=$2 log code
    shift 3
    log=$(log_of "$name")
    timeout -k 10 "$limit" "$@" >"$log" 2>&1 </dev/null
    code=$?
    if [ $code = 4 ] && grep -q '^error: ' "$log"; then
        row "$name" dry "$(grep -m 1 '^error: ' "$log")"
    else
        row "$name" FAIL "exit code $code without a clear line: $(tail -n 1 "$log")"
    fi
}

# The three networks: brain tumor, a 2D one, and hippocampus.
network() {
    case $1 in
    3d) echo --patch 128,128,128 --batch-size 2 --channels 4 --classes 4 --features 32,64,128,256,320,320 ;;
    2d) echo --patch 512,512 --batch-size 12 --channels 1 --classes 3 --features 32,64,128,256,512,512,512,512 ;;
    hippocampus) echo --patch 40,56,40 --batch-size 9 --channels 1 --classes 3 --features 32,64,128,256 ;;
    esac
}

section_machine() {
    [ -n "$dry" ] || check 'GPU' 60 1p nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
    check 'doctor' 60 '/cuDNN/{s/fix:.*//;p;}' nnunet-dist doctor
    check 'MPI: two ranks on the CPU' 300 's/.*mean Dice/mean Dice/p' \
        mpirun -np 2 "$results/train" --batch-size 1 --run-dir "$results/cpu2"
    check 'one rank on the CPU' 300 's/.*mean Dice/mean Dice/p' "$results/train" --batch-size 2 --run-dir "$results/cpu1"
    compare 'loss, CPU: one rank and two' cpu1 cpu2 0.001
}

# One process per test, so that no test depends on device state left by another.
section_kernels() {
    local name log
    for name in $(gpu-tests --list --format terse | sed -n 's/: test$//p'); do
        log=$(log_of "$name")
        if ! timeout -k 10 300 gpu-tests --exact "$name" --nocapture >"$log" 2>&1; then
            row "$name" FAIL "$(grep -m 1 -A 1 panicked "$log" | tail -n 1)"
        elif grep -q '^skipped: ' "$log"; then
            row "$name" "$([ -n "$dry" ] && echo dry || echo skip)" "$(sed -n 's/^skipped: //p' "$log" | head -n 1)"
        else
            row "$name" ok ''
        fi
    done
}

# nnunet-dist in each precision, PyTorch in each setting, and the ratio of the fastest of both.
section_step() {
    local name precision flags
    for name in 3d 2d hippocampus; do
        read -ra flags < <(network $name)
        for precision in fp32 tf32 amp-bf16 amp-fp16; do
            check_gpu "step $name $precision" 300 's/.*"seconds_median":\([0-9.e-]*\).*/\1 s/p' \
                nnunet-dist bench step --json --rounds 5 --device cuda --precision $precision "${flags[@]}"
        done
        if [ -n "$dry" ]; then
            row "step $name, PyTorch" dry 'needs a GPU'
            continue
        fi
        check "step $name, PyTorch" 900 's/.*"peer": "\([^"]*\)".*/\1/p' python3 "$pack/gpu_step.py" "${flags[@]}"
        check "step $name against PyTorch" 60 p python3 "$pack/ratio.py" "$(log_of "step $name, PyTorch")" \
            "$(log_of "step $name amp-bf16")" "$(log_of "step $name amp-fp16")"
    done
}

# Each layer with the kernel of the table and with Burn's, as a fraction of peak performance.
section_conv() {
    local flags
    read -ra flags < <(network 3d)
    check_gpu 'layers, cuDNN' 300 's/.*peak memory/peak memory/p' \
        nnunet-dist bench conv --device cuda --amp --rounds 5 "${flags[@]}"
    check_gpu 'layers, cuDNN and Burn' 420 's/.*peak memory/peak memory/p' \
        nnunet-dist bench conv --device cuda --amp --rounds 3 --burn "${flags[@]}"
}

section_memory() {
    local name flags
    for name in 3d 2d hippocampus; do
        read -ra flags < <(network $name)
        check_gpu "memory $name" 120 p nnunet-dist bench memory --device cuda --amp "${flags[@]}"
        check_gpu "memory $name, checkpointing" 120 p \
            nnunet-dist bench memory --device cuda --amp --gradient-checkpointing "${flags[@]}"
    done
}

# Two minutes of training on real data, and the GPU utilization in the second one.
section_train() {
    local run=$results/hippocampus log training code
    prepare || return
    if [ -n "$dry" ]; then
        check_gpu 'training' 60 p nnunet-dist train -w "$results/work" -c 3d_fullres -f 0 --device cuda --amp --run-dir "$run"
        return
    fi
    check 'parts of a step' 300 's/.*\(a step takes.*\)/\1/p' nnunet-dist train -w "$results/work" -c 3d_fullres -f 0 \
        --device cuda --amp --epochs 1 --iters-per-epoch 20 --val-iters 1 --profile 10 --run-dir "$results/profile"
    log=$(log_of training)
    nnunet-dist train -w "$results/work" -c 3d_fullres -f 0 --device cuda --amp --cache-gb 8 --run-dir "$run" >"$log" 2>&1 &
    training=$!
    sleep "${TRAIN_SECONDS:-60}"
    timeout 60 nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader,nounits -l 1 >"$results/busy.csv"
    kill -TERM $training
    wait $training
    code=$?
    if [ $code = 79 ]; then
        row 'training' ok "$(awk -F, '{ busy += $1; if ($2 > most) most = $2 } END { if (NR) printf "GPU busy %.1f %%, memory %d MiB", busy / NR, most }' "$results/busy.csv")"
        row 'training, last epoch' ok "$(tail -n 1 "$run/log.jsonl")"
    else
        row 'training' FAIL "exit code $code: $(tail -n 1 "$log")"
    fi
}

section_infer() {
    prepare || return
    local run=$results/hippocampus
    # Without a GPU the training above made no network; use one trained on the CPU.
    [ -z "$dry" ] || run=$results/cpu1
    local more=()
    [ -z "$dry" ] || more=(--images "$pack/data/phantoms/imagesTr")
    [ -n "$dry" ] || more=(--images "$pack/data/raw/imagesTr")
    check_gpu 'inference' 300 '/folder, overlapped/p' \
        nnunet-dist bench infer --run "$run" "${more[@]}" --device cuda --amp --rounds 2
}

section_nccl() {
    check_gpu 'one rank on the GPU' 300 's/.*mean Dice/mean Dice/p' \
        "$results/train" --device cuda --batch-size 2 --run-dir "$results/gpu1"
    check_gpu 'NCCL: one rank' 120 's/.*"algorithm_gb_per_s":\([0-9.]*\).*/\1 GB\/s/p' nccl 128 25
    check_gpu 'NCCL: one rank, one bucket' 120 's/.*"algorithm_gb_per_s":\([0-9.]*\).*/\1 GB\/s/p' nccl 128 128
    # Both ranks on the same GPU: experimental since NCCL 2.30.
    export NCCL_MULTI_RANK_GPU_ENABLE=1 NNUNET_DIST_SHARE_GPUS=1
    check_gpu 'NCCL: two ranks on one GPU' 120 's/.*"bus_gb_per_s":\([0-9.]*\).*/\1 GB\/s/p' mpirun -np 2 nccl 128 25
    check_gpu 'two ranks on one GPU' 300 's/.*mean Dice/mean Dice/p' \
        mpirun -np 2 "$results/train" --device cuda --batch-size 1 --run-dir "$results/gpu2"
    check_gpu 'two ranks, bf16 on the wire' 300 's/.*mean Dice/mean Dice/p' \
        mpirun -np 2 "$results/train" --device cuda --batch-size 1 --grad-compression bf16 --run-dir "$results/gpu2_bf16"
    check_gpu 'parts of a step, two ranks' 300 's/.*\(a step takes.*\)/\1/p' \
        mpirun -np 2 "$results/train" --device cuda --batch-size 1 --profile 5 --run-dir "$results/profile2"
    check_gpu 'scaling' 300 '/^ *2 /p' nnunet-dist scale -w "$pack/data/work" -c 3d_fullres -f 0 --np 1,2 --device cuda \
        --batch-size 1 --steps 10 -o "$results/scaling"
    compare 'loss, GPU: one rank and two' gpu1 gpu2 0.02
    [ -n "$dry" ] || compare 'loss, CPU and GPU' cpu1 gpu1 0.05
}

# Eight minutes of training, and the Dice of held-out cases.
section_long() {
    local run=$results/long epochs seconds
    prepare || return
    [ -z "$dry" ] || return 0
    seconds=$(sed -n 's/.*"epoch_s":\([0-9.]*\).*/\1/p' "$results/hippocampus/log.jsonl" 2>/dev/null | tail -n 1)
    epochs=$(awk -v s="${seconds:-10}" 'BEGIN { n = int(480 / s); print n > 1 ? n : 1 }')
    check "training for 8 minutes, $epochs epochs" 590 's/.*mean Dice/mean Dice/p' \
        nnunet-dist train -w "$results/work" -c 3d_fullres -f 0 --device cuda --amp --cache-gb 8 --epochs "$epochs" --run-dir "$run"
}

# Plans and preprocesses the real data in the pack, or the phantoms if there are none.
prepare() {
    [ -d "$results/work" ] && return 0
    local raw=$pack/data/raw
    [ -d "$raw" ] || raw=$pack/data/phantoms
    check 'plan' 300 p nnunet-dist -q plan -d "$raw" -w "$results/work" -c 3d_fullres
    check 'preprocess' 300 p nnunet-dist -q preprocess -w "$results/work" -c 3d_fullres
    [ -d "$results/work" ]
}

# Losses of one and two ranks with the same global batch agree; on the GPU up to the order of additions.
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

last_loss() {
    sed -n 's/.*"train_loss":\([0-9.e-]*\).*/\1/p' "$1/log.jsonl" 2>/dev/null | tail -n 1
}

# The short training that several checks use, as a program for mpirun.
cat >"$results/train" <<X
#!/bin/sh
exec nnunet-dist train -w "$pack/data/work" -c 3d_fullres -f 0 --epochs 2 --iters-per-epoch 10 --val-iters 2 "\$@"
X
chmod +x "$results/train"

for section in ${sections//,/ }; do
    echo "== $section" >&2
    "section_$section" || exit 2
done

commit=$(cat "$pack/commit" 2>/dev/null)
gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || echo no GPU)
{
    printf '{"commit": "%s", "gpu": "%s", "date": "%s", "checks": [' "$commit" "$gpu" "$(date -u +%F)"
    awk -F '\t' '{ gsub(/\\/, "\\\\"); gsub(/"/, "\\\""); printf "%s\n  {\"check\": \"%s\", \"result\": \"%s\", \"figure\": \"%s\"}", (NR > 1 ? "," : ""), $1, $2, $3 }' "$results/rows"
    printf '\n]}\n'
} >"$results/results.json"
echo
echo "commit $commit, $gpu, $(date -u +%F)"
awk -F '\t' '{ printf "%-40s %-5s %s\n", $1, $2, $3 }' "$results/rows"
exit $failed
