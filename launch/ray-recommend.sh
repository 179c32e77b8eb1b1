#!/usr/bin/env bash
# Lists for a file of users on a Ray cluster, as N jobs that each make a part:
#
#   RAY_ADDRESS=http://head:8265 launch/ray-recommend.sh 8 /shared/runs/kuairand/bundle \
#     --users /shared/users.parquet --out /shared/lists.parquet
#
# All nodes need this package and must see the same files. Ray starts as many jobs at once as have
# room; each writes OUT-<part>-of-<parts>.parquet, and one that is submitted again goes on after the
# blocks that are there. Ctrl-C, SIGTERM and SIGHUP stop all jobs. The largest exit status of
# `ray job submit` is returned: 0 when every part is done.
# Environment: PYTHON (default python), GPUS (default 1) and CPUS (default 1) of each job.
set -euo pipefail

if [[ ! ${1:-} =~ ^[1-9][0-9]*$ ]] || (($# < 2)); then
  echo "usage: launch/ray-recommend.sh NUM_PARTS BUNDLE --users FILE --out FILE [--flag=value ...]" >&2
  exit 2
fi
parts=$1
shift
run=dsmoe-recommend-$(date +%s)-$$

# Job control gives every submission a group of its own: Ctrl-C then comes once, through the trap.
set -m
asked_to_stop=
stop_all() {
  asked_to_stop=1
  trap '' TERM HUP INT
  for ((part = 1; part <= parts; part++)); do
    ray job stop --no-wait "$run-$part" || true
  done
}
trap stop_all TERM HUP INT

pids=()
for ((part = 1; part <= parts; part++)); do
  if [[ $asked_to_stop ]]; then break; fi
  ray job submit --submission-id "$run-$part" \
    --entrypoint-num-gpus "${GPUS:-1}" --entrypoint-num-cpus "${CPUS:-1}" \
    -- "${PYTHON:-python}" -m dsmoe_jax.main recommend "$@" --part "$part/$parts" </dev/null &
  pids+=($!)
done

worst=0
for pid in "${pids[@]}"; do
  while true; do
    asked_to_stop=
    status=0
    wait "$pid" || status=$?
    # A signal ends the wait but not the submission, which ends once its job is stopped.
    if [[ ! $asked_to_stop ]]; then break; fi
  done
  if ((status > worst)); then worst=$status; fi
done
exit "$worst"
