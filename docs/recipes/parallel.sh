#!/bin/bash
# parallel.sh SHARES COMMAND...: all shares of a command at once by GNU parallel, then its end.
#
#   parallel.sh 4 smile-fast evaluate RUN
#
# With --sshloginfile in PARALLEL the shares run on several machines that see the same folders.
set -euo pipefail
shares="$1"
shift
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((($(nproc) + shares - 1) / shares))}"
seq "$shares" | parallel --quote --jobs "$shares" "$@" --shard "{}/$shares" &
parallel="$!"
stop() {  # with status $1; else the end would follow shares that were stopped
    trap '' INT TERM
    kill "$parallel" 2>/dev/null || true
    wait
    exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM
wait "$parallel" || echo "a share has failed; what it lacks is said below" >&2
exec "$@" --finish
