#!/bin/sh
# Redirects the TCP traffic of this network namespace to the sidecar: what Istio's init container does in REDIRECT
# mode, with its flags and its chain names, so that tools which look for them find them.
#
# Needs root (CAP_NET_ADMIN), iptables with the nat table, and for IPv6 also ip6tables and ip. Running it again replaces
# the rules; -c removes them. Each chain set is loaded in one step: there is no moment with half of the rules.
set -eu

usage() {
    cat <<'USAGE'
usage: iptables-init.sh [flags]
  -p PORT   where outbound traffic goes (15001)
  -z PORT   where inbound traffic goes (15006)
  -u UID    the proxy's users, comma separated: their own traffic passes (1337)
  -g GID    the proxy's groups, comma separated (same as -u)
  -i CIDRS  outbound destinations to redirect, comma separated; * is all ('*')
  -x CIDRS  outbound destinations to leave alone ('')
  -o PORTS  outbound ports to leave alone ('')
  -b PORTS  inbound ports to redirect, comma separated; * is all; '' is none ('*')
  -d PORTS  inbound ports to leave alone ('15090,15021,15020')
  -m MODE   only REDIRECT
  -c        remove the rules instead
  -n        print the rules instead of loading them
  -h        this text
USAGE
}

fail() {
    echo "iptables-init.sh: $*" >&2
    exit 1
}

outbound_port=15001
inbound_port=15006
proxy_uid=1337
proxy_gid=
include_cidrs='*'
exclude_cidrs=
exclude_outbound_ports=
include_ports='*'
exclude_ports=15090,15021,15020
action=load

while getopts p:z:u:g:i:x:o:b:d:m:cnh flag; do
    case $flag in
        p) outbound_port=$OPTARG ;;
        z) inbound_port=$OPTARG ;;
        u) proxy_uid=$OPTARG ;;
        g) proxy_gid=$OPTARG ;;
        i) include_cidrs=$OPTARG ;;
        x) exclude_cidrs=$OPTARG ;;
        o) exclude_outbound_ports=$OPTARG ;;
        b) include_ports=$OPTARG ;;
        d) exclude_ports=$OPTARG ;;
        m) [ "$OPTARG" = REDIRECT ] || fail "-m: '$OPTARG' is not supported; expected REDIRECT" ;;
        c) action=clean ;;
        n) action=print ;;
        h) usage; exit 0 ;;
        *) usage >&2; exit 1 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -eq 0 ] || fail "unexpected argument '$1' (see -h)"
proxy_gid=${proxy_gid:-$proxy_uid}

# Words of a comma-separated list, one per line, without expanding '*'.
words() {
    printf '%s' "$1" | tr ',' '\n' | sed -e 's/^[[:space:]]*//' -e 's/[[:space:]]*$//' -e '/^$/d'
}

# check_numbers FLAG LIST MAX
check_numbers() {
    for word in $(words "$2"); do
        case $word in
            *[!0-9]* | ??????????*) fail "-$1: '$word' is not a number from 0 to $3" ;;
        esac
        [ "$word" -le "$3" ] || fail "-$1: '$word' is not a number from 0 to $3"
    done
}

# check_cidrs FLAG LIST: only that nothing but an address can get into the rules; iptables checks the rest.
check_cidrs() {
    [ "$2" = '*' ] && return
    for word in $(set -f; words "$2"); do
        case $word in
            *[!0-9a-fA-F.:/]*) fail "-$1: '$word' is not a CIDR such as 10.0.0.0/8" ;;
        esac
    done
}

check_numbers p "$outbound_port" 65535
check_numbers z "$inbound_port" 65535
check_numbers u "$proxy_uid" 999999999
check_numbers g "$proxy_gid" 999999999
check_numbers o "$exclude_outbound_ports" 65535
check_numbers d "$exclude_ports" 65535
[ "$include_ports" = '*' ] || check_numbers b "$include_ports" 65535
check_cidrs i "$include_cidrs"
check_cidrs x "$exclude_cidrs"
for one in "$outbound_port" "$inbound_port"; do
    case $one in
        '' | *,*) fail "-p and -z each take one port, found '$one'" ;;
    esac
done

# of_family 4|6 LIST: the CIDRs of one address family.
of_family() {
    for cidr in $(set -f; words "$2"); do
        case $1:$cidr in
            4:*:* | 4:'*') ;;
            4:*) echo "$cidr" ;;
            6:*:*) echo "$cidr" ;;
        esac
    done
}

# rules 4|6: the text for iptables-restore.
rules() {
    if [ "$1" = 4 ]; then
        loopback=127.0.0.1/32
        inbound_source=127.0.0.6/32
    else
        loopback=::1/128
        inbound_source=::6/128
    fi
    echo '*nat'
    for chain in ISTIO_INBOUND ISTIO_REDIRECT ISTIO_IN_REDIRECT ISTIO_OUTPUT; do
        echo ":$chain - [0:0]"
    done
    echo "-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports $outbound_port"
    echo "-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports $inbound_port"

    # HBONE has a listener of its own.
    echo '-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN'
    if [ "$include_ports" = '*' ]; then
        for port in $(words "$exclude_ports"); do
            echo "-A ISTIO_INBOUND -p tcp --dport $port -j RETURN"
        done
        echo '-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT'
    else
        for port in $(words "$include_ports"); do
            echo "-A ISTIO_INBOUND -p tcp --dport $port -j ISTIO_IN_REDIRECT"
        done
    fi

    # The proxy's inbound side connects to the application from this address: redirecting it would be a loop.
    echo "-A ISTIO_OUTPUT -o lo -s $inbound_source -j RETURN"
    for port in $(words "$exclude_outbound_ports"); do
        echo "-A ISTIO_OUTPUT -p tcp --dport $port -j RETURN"
    done
    for owner in $(words "$proxy_uid" | sed 's/^/uid-owner:/') $(words "$proxy_gid" | sed 's/^/gid-owner:/'); do
        match=${owner%%:*}
        id=${owner#*:}
        # The proxy calls its own pod: in by the front door.
        echo "-A ISTIO_OUTPUT -o lo ! -d $loopback -p tcp ! --dport 15008 -m owner --$match $id -j ISTIO_IN_REDIRECT"
        # The application calls itself: not our business.
        echo "-A ISTIO_OUTPUT -o lo -m owner ! --$match $id -j RETURN"
        # The proxy calls the world.
        echo "-A ISTIO_OUTPUT -m owner --$match $id -j RETURN"
    done
    echo "-A ISTIO_OUTPUT -d $loopback -j RETURN"
    for cidr in $(of_family "$1" "$exclude_cidrs"); do
        echo "-A ISTIO_OUTPUT -d $cidr -j RETURN"
    done
    if [ "$include_cidrs" = '*' ]; then
        echo '-A ISTIO_OUTPUT -j ISTIO_REDIRECT'
    else
        for cidr in $(of_family "$1" "$include_cidrs"); do
            echo "-A ISTIO_OUTPUT -d $cidr -j ISTIO_REDIRECT"
        done
    fi
    echo 'COMMIT'
}

# jump TABLES_COMMAND CHAIN ARGUMENTS...: appends a jump unless it is there.
jump() {
    tables=$1
    shift
    "$tables" -w -t nat -C "$@" 2>/dev/null || "$tables" -w -t nat -A "$@"
}

load() {
    rules "$2" | "$1-restore" -w --noflush
    jump "$1" PREROUTING -p tcp -j ISTIO_INBOUND
    jump "$1" OUTPUT -j ISTIO_OUTPUT
}

clean() {
    while "$1" -w -t nat -D PREROUTING -p tcp -j ISTIO_INBOUND 2>/dev/null; do :; done
    while "$1" -w -t nat -D OUTPUT -j ISTIO_OUTPUT 2>/dev/null; do :; done
    for chain in ISTIO_OUTPUT ISTIO_INBOUND ISTIO_REDIRECT ISTIO_IN_REDIRECT; do
        "$1" -w -t nat -F "$chain" 2>/dev/null || :
    done
    for chain in ISTIO_OUTPUT ISTIO_INBOUND ISTIO_REDIRECT ISTIO_IN_REDIRECT; do
        "$1" -w -t nat -X "$chain" 2>/dev/null || :
    done
}

# works COMMAND: whether it is there and the kernel has a nat table for it.
works() {
    command -v "$1" >/dev/null 2>&1 && "$1" -w -t nat -S >/dev/null 2>&1
}

# pick COMMAND...: the first that works.
pick() {
    for candidate in "$@"; do
        if works "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

if [ "$action" = print ]; then
    rules 4
    rules 6
    exit 0
fi

v4=$(pick iptables iptables-nft iptables-legacy)
[ -n "$v4" ] || fail 'no working iptables: needs root, the iptables package, and the nat table in the kernel'
v6=
if [ -e /proc/net/if_inet6 ]; then
    v6=$(pick ip6tables ip6tables-nft ip6tables-legacy)
    [ -n "$v6" ] || echo 'iptables-init.sh: no working ip6tables: IPv6 traffic is not redirected' >&2
fi

if [ "$action" = clean ]; then
    clean "$v4"
    [ -z "$v6" ] || clean "$v6"
    ip -6 addr del ::6/128 dev lo 2>/dev/null || :
    exit 0
fi

load "$v4" 4
if [ -n "$v6" ]; then
    load "$v6" 6
    # Unlike 127.0.0.6, ::6 is not local by itself.
    if command -v ip >/dev/null 2>&1; then
        ip -6 addr add ::6/128 dev lo 2>/dev/null || :
    else
        echo 'iptables-init.sh: no ip command: ::6 is not added to lo, inbound IPv6 to the application will fail' >&2
    fi
fi
