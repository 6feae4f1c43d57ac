#!/bin/sh
# Runs an agent on a machine of its own: a network namespace at the other end of a cable.
#
#     machine.sh PROGRAM ARGUMENT…
#
# is PROGRAM ARGUMENT… --listen ADDRESS, with an address that only the namespace that has started it reaches. The process
# keeps its number, and the machine ends with it. The addresses are those of documentation (RFC 5737). Needs root.
set -eu

if [ "${1:-}" != --inside ]; then
    exec unshare --net sh "$0" --inside "$PPID" "$@"
fi
outer=$2
shift 2

outside() {
    nsenter --net="/proc/$outer/ns/net" "$@"
}

number=1
until said=$(outside ip link add "agent$number" type veth peer name eth0 netns $$ 2>&1); do
    number=$((number + 1))
    [ "$number" -lt 100 ] || { echo "$said" >&2; exit 1; }
done
outside ip address add 192.0.2.254 peer "192.0.2.$number" dev "agent$number"
outside ip link set "agent$number" up
ip address add "192.0.2.$number" peer 192.0.2.254 dev eth0
ip link set eth0 up
exec "$@" --listen "192.0.2.$number:9000"
