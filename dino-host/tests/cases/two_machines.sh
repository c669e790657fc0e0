#!/bin/sh
# Two "machines" on one: a network, a host name and shared memory for each, and 1 Gbit/s between them. Needs root and iproute2.
#   two_machines.sh up | down
#   two_machines.sh HOST COMMAND...    what a launcher calls in the place of ssh; HOST is 10.77.N.1 or 10.77.N.2
# DINO_MACHINES=N (0 to 255) tells several pairs apart. The second machine finds nothing in the folder $DINO_HIDDEN.
set -eu
n=$DINO_MACHINES
case ${1:-} in
up)
    for h in 1 2; do
        ip netns add "dino$n-$h"
        ip -n "dino$n-$h" link set lo up
    done
    ip link add "dn$n-1" netns "dino$n-1" type veth peer name "dn$n-2" netns "dino$n-2"
    for h in 1 2; do
        ip -n "dino$n-$h" addr add "10.77.$n.$h/24" dev "dn$n-$h"
        ip -n "dino$n-$h" link set "dn$n-$h" up
        tc -n "dino$n-$h" qdisc add dev "dn$n-$h" root tbf rate 1gbit burst 256kb latency 50ms
    done
    ;;
down)
    for h in 1 2; do ip netns del "dino$n-$h" || true; done
    ;;
*)
    while :; do case $1 in -*) shift ;; *) break ;; esac done
    h=${1##*.}
    shift
    # The command comes as one string or as words: a shell joins them, as ssh does.
    own="echo machine$h > /proc/sys/kernel/hostname"
    [ "$h" = 1 ] || own="$own; mount -t tmpfs none '$DINO_HIDDEN'"
    exec ip netns exec "dino$n-$h" unshare --uts --ipc --mount sh -c "$own; $*"
    ;;
esac
