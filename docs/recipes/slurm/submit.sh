#!/bin/bash
# submit.sh SHARES COMMAND...: an array of SHARES tasks, and a job that finishes when all of them have ended.
#
#   submit.sh 16 smile-fast prepare DATASET STORE
#
# Prints the number of the job that finishes; AFTER=NUMBER makes the array wait for another one.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
shares="$1"
shift
after=()
if [ -n "${AFTER:-}" ]; then
    after=(--dependency="afterok:$AFTER")
fi
array="$(sbatch --parsable --array="1-$shares" "${after[@]}" "$here/share.sbatch" "$@")"
echo "array ${array%%;*}: $*" >&2
sbatch --parsable --dependency="afterany:${array%%;*}" "$here/finish.sbatch" "$@"
