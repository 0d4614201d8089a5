#!/bin/sh
# Makes this machine the follower FLUXBURST_HOST of order b-1.
if [ -z "$FLUXBURST_HOST" ]; then
    echo "FLUXBURST_HOST is not set: it is the host of the order that this machine is" >&2
    exit 2
fi
FLUXBURST_INDEX=0
for host in tf-0 tf-1; do
    [ "$host" != "$FLUXBURST_HOST" ] || break
    FLUXBURST_INDEX=$((FLUXBURST_INDEX + 1))
done
export FLUXBURST_INDEX
mkdir -p /var/lib/fluxburst/b-1 || exit 3
(umask 077 && { cloud secret read curve-cert; } >/var/lib/fluxburst/b-1/curve.cert) || exit 3
cat >/var/lib/fluxburst/b-1/"$FLUXBURST_HOST.toml" <<'FLUXBURST_END_OF_FILE' || exit 3
[bootstrap]
curve_cert = "/var/lib/fluxburst/b-1/curve.cert"

FLUXBURST_END_OF_FILE
mv /var/lib/fluxburst/b-1/"$FLUXBURST_HOST.toml" /var/lib/fluxburst/b-1/broker.toml || exit 3
cat >/var/lib/fluxburst/b-1/"$FLUXBURST_HOST.sh" <<'FLUXBURST_END_OF_FILE' || exit 3
#!/bin/sh
# Runs the follower broker of one host until it has been asked to go (exit status 0, or a signal to this script).
if [ -z "$FLUXBURST_INDEX" ]; then
    echo "FLUXBURST_INDEX is not set: start this script as a task of the launcher that sets it" >&2
    exit 2
fi
index=$FLUXBURST_INDEX
set -- tf-0 tf-1
if [ "$index" -ge "$#" ]; then
    echo "task $index has no host: only $# are ordered" >&2
    exit 2
fi
shift "$index"
host=$1

# An outer Flux or Slurm job must not be taken for this broker's own parent.
unset FLUX_URI FLUX_KVS_NAMESPACE FLUX_JOB_ID_PATH FLUX_PMI_CLIENT_METHODS PMI_FD PMI_RANK PMI_SIZE PMI_SPAWNED

# The broker's umask is its jobs' umask, so only this directory is made private.
# shellcheck disable=SC2174
mkdir -p /var/lib/fluxburst/b-1 && mkdir -p -m 700 /var/lib/fluxburst/b-1/"$host" && cd /var/lib/fluxburst/b-1/"$host" || exit 2

# A broker waits for its lead without end. It has one as soon as Flux runs what is in rc1.d.
# shellcheck disable=SC2016
mkdir -p rc/rc1.d && printf '%s\n' '#!/bin/sh' ': >"$FLUXBURST_JOINED"' >rc/rc1.d/joined && chmod 700 rc/rc1.d/joined
export FLUXBURST_JOINED="$PWD/joined" FLUX_RC_EXTRA="$PWD/rc${FLUX_RC_EXTRA:+:$FLUX_RC_EXTRA}"

# Shells run this between commands: $child is the broker, or the pause before the next one, or "$!" is, just begun.
stop() {
    : "${child:=$!}"
    rm -f "try-$left"
    kill -TERM "$watch" 2>/dev/null
    # Again and again: a child that has not yet become its program loses the signal.
    while kill -TERM "$child" 2>/dev/null; do sleep 1; done
    exit 0
}
trap stop TERM INT HUP

left=3
while :; do
    rm -f joined no-lead
    : >"try-$left"
    child='' watch=''
    flux broker -c /var/lib/fluxburst/b-1/broker.toml -Shostname="$host" -Sbroker.boot-method=config >>broker.log 2>&1 &
    child=$!
    if [ -x rc/rc1.d/joined ]; then
        (
            exec </dev/null >/dev/null 2>&1
            trap 'kill "$!"; exit 0' TERM
            sleep 600 &
            wait "$!"
            # A signal to a process that has just begun may be lost: this broker may have ended long ago.
            [ -e joined ] || [ ! -e "try-$left" ] || { : >no-lead; kill -TERM "$child"; }
        ) &
        watch=$!
    fi
    wait "$child"
    status=$?
    rm -f "try-$left"
    [ -z "$watch" ] || kill -TERM "$watch" 2>/dev/null
    [ "$status" -ne 0 ] || exit 0
    if [ -e no-lead ]; then
        echo "there was no lead for 600 s" >>broker.log
        exit 69
    fi
    [ "$left" -gt 0 ] || exit "$status"
    left=$((left - 1))
    child=''
    sleep 5 &
    child=$!
    wait "$child"
done
FLUXBURST_END_OF_FILE
exec /bin/sh /var/lib/fluxburst/b-1/"$FLUXBURST_HOST.sh"
