#!/bin/bash
# loop.sh SHARES COMMAND...: all shares of a command at once, by nothing but a shell, then its end.
#
#   loop.sh 4 smile-predict model.onnx SCANS -o LABELS
set -euo pipefail
shares="$1"
shift
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((($(nproc) + shares - 1) / shares))}"
pids=()
stop() {  # with status $1; Ctrl-C does not reach what a script has sent to the background
    trap '' INT TERM
    kill "${pids[@]}" 2>/dev/null || true
    wait
    exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM
for number in $(seq "$shares"); do
    "$@" --shard "$number/$shares" &
    pids+=("$!")
done
for pid in "${pids[@]}"; do
    wait "$pid" || echo "a share has failed; what it lacks is said below" >&2
done
exec "$@" --finish
