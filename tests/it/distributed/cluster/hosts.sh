#!/usr/bin/env bash
# See usage below. Each host is a network namespace; the links end at a bridge in a separate namespace, so that
# the machine's own network is not changed.
set -euo pipefail

prefix=${NNUNET_CLUSTER_PREFIX:-nnd}
state=${NNUNET_CLUSTER_STATE:-${TMPDIR:-/tmp}/$prefix-cluster}
switch=${prefix}switch
network=10.77.0
self=$(readlink -f "$0")

usage() {
    cat <<EOF
A cluster on one machine: each host has its own network, host name and local folder; everything else is shared.
Needs root.

  hosts.sh check [shape]             print why this machine cannot run it (with shape: no slow links); exit code 4
  hosts.sh up N                      make the hosts ${prefix}1 … ${prefix}N: $network.1 … $network.N on eth0
  hosts.sh down                      kill their processes and remove them, also after a partial start
  hosts.sh hold                      wait until standard input ends, then go down
  hosts.sh list                      the hosts, one a line
  hosts.sh exec HOST COMMAND…        run a command on a host
  hosts.sh run SLOTS COMMAND…        mpirun with SLOTS ranks on each host (\$MPIRUN_FLAGS: more flags)
  hosts.sh shape RATE [LOSS%]        make all links slow and lossy, as in: shape 100mbit 1%
  hosts.sh shape off
  hosts.sh link HOST up|down         bring the link of a host up or down
  hosts.sh power HOST                kill all processes of a host at once
  hosts.sh freeze|thaw HOST          stop or continue all processes of a host
  hosts.sh signal HOST NAME PROGRAM  send a signal to the processes of one program on a host
  hosts.sh stat                      a line for each host: name, bytes received and bytes sent on eth0

Environment: NNUNET_CLUSTER_PREFIX, the prefix of all names (now $prefix); NNUNET_CLUSTER_STATE, a folder
for the cluster's files (now $state).
EOF
}

main() {
    local command=${1:-help}
    shift || true
    case $command in
    check | up | down | hold | list | exec | run | shape | link | power | freeze | thaw | signal | stat)
        "do_$command" "$@"
        ;;
    help | -h | --help) usage ;;
    *)
        usage >&2
        exit 2
        ;;
    esac
}

do_check() {
    local tool probe=${prefix}probe
    [ "$(id -u)" -eq 0 ] || missing "network namespaces need root"
    for tool in ip nsenter unshare; do
        command -v "$tool" >/dev/null || missing "$tool is not installed (Debian: iproute2, util-linux)"
    done
    unshare --net --uts --mount true 2>/dev/null || missing "this kernel or container refuses new namespaces"
    ip netns delete "$probe" 2>/dev/null || true
    ip netns add "$probe" 2>/dev/null || missing "no network namespace can be named in this container (ip netns add)"
    if [ "${1:-}" = shape ] && ! can_shape "$probe"; then
        ip netns delete "$probe"
        missing "links cannot be made slow: nft is not installed (Debian: nftables) or the kernel lacks tbf or nf_tables"
    fi
    ip netns delete "$probe"
}

missing() {
    echo "$1" >&2
    exit 4
}

can_shape() {
    command -v nft >/dev/null && command -v tc >/dev/null && limit_rate "$1" lo 1gbit 2>/dev/null &&
        lose "$1" lo 1% 2>/dev/null
}

do_up() {
    local count=${1:?how many hosts} number
    mkdir -p "$state/local"
    write_hosts_file "$count"
    write_remote_shell
    ip netns add "$switch"
    ip -n "$switch" link add bridge type bridge stp_state 0 forward_delay 0
    ip -n "$switch" link set bridge up
    for number in $(seq "$count"); do
        add_host "$number"
    done
    await_links "$count"
}

write_hosts_file() {
    local number
    echo "127.0.0.1 localhost"
    for number in $(seq "$1"); do
        echo "$network.$number $prefix$number"
    done
} >"$state/hosts"

# Replaces ssh when a launcher starts its daemons: AGENT [flags of ssh] HOST COMMAND…
# As with ssh, it keeps running on the calling host, and does not notice when the other one loses power.
write_remote_shell() {
    cat >"$state/rsh" <<EOF
#!/bin/sh
while :; do
    case "\$1" in
    -[loFip]) shift 2 ;;
    -*) shift ;;
    *) break ;;
    esac
done
host=\$1
shift
export NNUNET_CLUSTER_PREFIX='$prefix' NNUNET_CLUSTER_STATE='$state'
status=0
'$self' exec "\$host" sh -c "\$*" </dev/null || status=\$?
[ \$status -ne 137 ] || sleep 60
exit \$status
EOF
    chmod +x "$state/rsh"
}

add_host() {
    local number=$1 host=$prefix$1
    mkdir -p "$state/local.$host"
    ip netns add "$host"
    ip link add eth0 netns "$host" type veth peer name "port$number" netns "$switch"
    ip -n "$switch" link set "port$number" master bridge up
    ip -n "$host" address add "$network.$number/24" dev eth0
    ip -n "$host" link set eth0 up
    ip -n "$host" link set lo up
}

# A link drops packets for a moment after it comes up. Port 1 is closed, so an answer is a refused connection.
await_links() {
    local number _
    for number in $(seq 2 "$1"); do
        for _ in $(seq 50); do
            answer_from "$number" | grep -q refused && continue 2
            sleep 0.1
        done
        echo "${prefix}1 does not reach $prefix$number" >&2
        exit 1
    done
}

answer_from() {
    nsenter --net="/run/netns/${prefix}1" timeout 2 bash -c "echo >/dev/tcp/$network.$1/1" 2>&1 || true
}

do_down() {
    local host
    for host in $(namespaces | grep -E "^$prefix([0-9]+|switch)$"); do
        # The next round kills processes that were started during this one.
        while kill_all KILL "$host"; do
            sleep 0.05
        done
        ip netns delete "$host"
    done
    rm -rf "$state"
}

do_hold() {
    trap '' INT TERM HUP
    cat >/dev/null
    do_down
}

do_list() {
    namespaces | grep -E "^$prefix[0-9]+$" | sort -V || true
}

namespaces() {
    ip netns list | cut -d ' ' -f 1
}

# `ip netns exec` would mount another /sys, without the cgroups that slurmd needs; nsenter does not. The mount
# namespace gives each host its own folder at the same path, which PMIx needs.
do_exec() {
    local host=${1:?which host}
    shift
    exec nsenter --net="/run/netns/$host" unshare --uts --mount sh -c '
        hostname "$0"
        mount --bind "$1/hosts" /etc/hosts
        mount --bind "$1/local.$0" "$1/local"
        shift
        exec "$@"' "$host" "$state" "$@"
}

# The flags are those of docs/how-to/processes.md, and the remote shell.
do_run() {
    local slots=${1:?how many ranks on each host} hosts count
    shift
    hosts=$(do_list | sed "s/\$/:$slots/" | paste -sd ,)
    count=$(do_list | wc -l)
    # shellcheck disable=SC2086
    do_exec "${prefix}1" mpirun --allow-run-as-root -np $((count * slots)) --host "$hosts" --map-by node --bind-to none \
        --mca plm rsh --mca plm_rsh_agent "$state/rsh" --mca orte_keep_fqdn_hostnames 1 \
        --mca pml ob1 --mca btl self,vader,tcp --mca btl_tcp_if_include eth0 --mca oob_tcp_if_include eth0 \
        --mca oob_tcp_keepalive_time 3 --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 3 \
        --mca mpi_yield_when_idle 1 ${MPIRUN_FLAGS:-} "$@"
}

# Rate by tbf and loss by nftables, since many kernels lack netem, which does both.
do_shape() {
    local rate=${1:?a rate, or off} loss=${2:-} host
    for host in $(do_list); do
        tc -n "$host" qdisc delete dev eth0 root 2>/dev/null || true
        nsenter --net="/run/netns/$host" nft delete table netdev shape 2>/dev/null || true
        if [ "$rate" != off ]; then
            limit_rate "$host" eth0 "$rate"
            [ -z "$loss" ] || lose "$host" eth0 "$loss"
        fi
    done
}

limit_rate() {
    tc -n "$1" qdisc add dev "$2" root tbf rate "$3" burst 256kb latency 400ms
}

# Packets are dropped on arrival.
lose() {
    local per_mille
    per_mille=$(awk -v percent="${3%\%}" 'BEGIN { print int(percent * 10) }')
    nsenter --net="/run/netns/$1" nft -f - <<EOF
table netdev shape {
    chain arrivals {
        type filter hook ingress device $2 priority 0
        numgen random mod 1000 < $per_mille counter drop
    }
}
EOF
}

do_link() {
    ip -n "$switch" link set "port${1#"$prefix"}" "$2"
}

do_power() {
    kill_all KILL "$1" || true
}

do_freeze() {
    kill_all STOP "$1" || true
}

do_thaw() {
    kill_all CONT "$1" || true
}

# False if no process received the signal.
kill_all() {
    local processes
    processes=$(ip netns pids "$2")
    # shellcheck disable=SC2086
    [ -n "$processes" ] && { kill -s "$1" $processes 2>/dev/null || true; }
}

do_signal() {
    local host=${1:?which host} name=$2 program=$3 process found=
    for process in $(ip netns pids "$host"); do
        if [ "$(basename "$(readlink "/proc/$process/exe")")" = "$program" ]; then
            kill -s "$name" "$process"
            found=yes
        fi
    done
    if [ -z "$found" ]; then
        echo "no $program runs on $host" >&2
        exit 1
    fi
}

do_stat() {
    local host
    for host in $(do_list); do
        nsenter --net="/run/netns/$host" awk -v host="$host" '$1 == "eth0:" { print host, $2, $10 }' /proc/net/dev
    done
}

main "$@"
