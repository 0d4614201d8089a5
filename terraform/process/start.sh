# Starts a node's script in a session of its own, which outlives Terraform.
set -e
if [ -e "$FLUXBURST_DIRECTORY/pid" ] &&
    tr '\0' '\n' <"/proc/$(cat "$FLUXBURST_DIRECTORY/pid")/environ" 2>/dev/null | grep -qxF "FLUXBURST_DIRECTORY=$FLUXBURST_DIRECTORY"; then
    exit 0 # a Terraform that was killed has started it, and did not come to write that down
fi
mkdir -p "$FLUXBURST_DIRECTORY"
chmod 700 "$FLUXBURST_DIRECTORY"
printf '%s\n' "$SCRIPT" >"$FLUXBURST_DIRECTORY/boot.sh"
unset SCRIPT
setsid sh "$FLUXBURST_DIRECTORY/boot.sh" </dev/null >"$FLUXBURST_DIRECTORY/log" 2>&1 &
echo "$!" >"$FLUXBURST_DIRECTORY/pid"
