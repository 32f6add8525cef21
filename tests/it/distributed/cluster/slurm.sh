#!/usr/bin/env bash
# See usage below. No systemd, no cgroups, no accounting; each daemon forks into the background and writes a PID file.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
prefix=${NNUNET_CLUSTER_PREFIX:-nnd}
hosts_state=${NNUNET_CLUSTER_STATE:-${TMPDIR:-/tmp}/$prefix-cluster}
# Within the hosts' folder, so that it is removed with the hosts.
state=$hosts_state/slurm
network=10.77.0
export SLURM_CONF=$state/slurm.conf

usage() {
    cat <<EOF
Slurm on the hosts of hosts.sh, which must be up: the controller on the first host, a node on each.

  slurm.sh check              print why this machine cannot run it; exit code 4
  slurm.sh up [CPUS]          start it with this many processors per node (2), and wait until all nodes are idle
  slurm.sh down               stop it; "hosts.sh down" does, too
  slurm.sh do COMMAND…        run a command of Slurm, or any other, on the first host
  slurm.sh boot HOST          start a node again, after "hosts.sh power HOST"

Environment: that of hosts.sh.
EOF
}

main() {
    local command=${1:-help}
    shift || true
    case $command in
    check | up | down | do | boot) "do_$command" "$@" ;;
    help | -h | --help) usage ;;
    *)
        usage >&2
        exit 2
        ;;
    esac
}

on() {
    "$here/hosts.sh" exec "$@"
}

do_check() {
    local tool
    PATH=$PATH:/usr/sbin
    for tool in slurmctld slurmd munged sbatch srun scontrol; do
        if ! command -v "$tool" >/dev/null; then
            echo "$tool is not installed (Debian: slurm-wlm, slurm-wlm-basic-plugins, munge)" >&2
            exit 4
        fi
    done
}

do_up() {
    local cpus=${1:-2} host
    mkdir -p "$state"/{munge,socket,jobs,log}
    # Only munge may read the folder of the key; everybody may read that of the socket.
    chmod 700 "$state/munge"
    chmod 755 "$state" "$state/socket"
    write_configuration "$cpus"
    start_munge
    on "${prefix}1" slurmctld -c -f "$SLURM_CONF"
    for host in $("$here/hosts.sh" list); do
        mkdir -p "$state/spool.$host"
        start_node "$host"
    done
    await_idle
}

# Non-obvious settings: `cred_expire`, without which a requeued job waits for two minutes; `config_overrides`, so that
# nodes may declare more processors than exist; PMIx's folder, which must differ between nodes.
write_configuration() {
    local count
    count=$("$here/hosts.sh" list | wc -l)
    cat >"$SLURM_CONF" <<EOF
ClusterName=$prefix
SlurmctldHost=${prefix}1($network.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$state/socket/munge,cred_expire=5
CredType=cred/munge
StateSaveLocation=$state/jobs
SlurmdSpoolDir=$state/spool.%n
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.%n.pid
SlurmctldLogFile=$state/log/slurmctld.log
SlurmdLogFile=$state/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc=$state/log/completed
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=pmix
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=15
InactiveLimit=0
KillWait=5
MessageTimeout=10
JobRequeue=1
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
NodeName=$prefix[1-$count] NodeAddr=$network.[1-$count] CPUs=$1 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
    echo "PMIxCliTmpDirBase=$hosts_state/local" >"$state/mpi.conf"
}

# One daemon serves all nodes, since Unix sockets ignore network namespaces.
start_munge() {
    (umask 277 && head -c 128 /dev/urandom >"$state/munge/key")
    on "${prefix}1" munged --key-file "$state/munge/key" --seed-file "$state/munge/seed" --socket "$state/socket/munge" \
        --pid-file "$state/munge/pid" --log-file "$state/log/munged.log"
}

start_node() {
    on "$1" slurmd -N "$1" -f "$SLURM_CONF"
}

await_idle() {
    local count _
    count=$("$here/hosts.sh" list | wc -l)
    for _ in $(seq 100); do
        [ "$(do_do sinfo -h -N -o %T 2>/dev/null | grep -c '^idle$')" = "$count" ] && return
        sleep 0.1
    done
    do_do sinfo -N -l >&2
    exit 1
}

do_down() {
    local file
    for file in "$state"/slurmd.*.pid "$state/slurmctld.pid" "$state/munge/pid"; do
        [ -s "$file" ] && kill "$(cat "$file")" 2>/dev/null || true
    done
    sleep 0.5
    rm -rf "$state"
}

do_do() {
    on "${prefix}1" "$@"
}

# Remains of PMIx would refuse the next step of the same job. If a node keeps its temporary folder
# and SlurmdSpoolDir in memory, both are empty after a power failure.
do_boot() {
    find "$hosts_state/local.$1" -mindepth 1 -delete
    rm -rf "$state/spool.$1"/*pmix*
    start_node "$1"
}

main "$@"
