# Ends a node's script, and waits for its end; after twenty seconds by force.
[ -e "$FLUXBURST_DIRECTORY/pid" ] || exit 0
pid=$(cat "$FLUXBURST_DIRECTORY/pid")
is_ours() {
    # the number may be another process' by now; one that has ended has no environment
    tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qxF "FLUXBURST_DIRECTORY=$FLUXBURST_DIRECTORY"
}
tries=0
while is_ours; do
    [ "$tries" -ne 0 ] || kill -TERM "$pid"
    [ "$tries" -lt 100 ] || kill -KILL "-$pid"
    tries=$((tries + 1))
    sleep 0.2
done
rm -rf "$FLUXBURST_DIRECTORY"
