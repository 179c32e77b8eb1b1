#!/usr/bin/env bash
# One job as N processes on this machine, each with its own share of the GPUs, or of the CPU cores
# where there is no GPU:
#
#   launch/local.sh 2 --config configs/kuairand.py:sample --workdir runs/sample
#
# SIGTERM, SIGHUP and Ctrl-C reach every process, and each saves before it ends. The largest exit
# status is returned; 130 means stopped with its state saved, and the same command resumes.
# Environment: PYTHON (default python), DSMOE_PORT (default: a free one), CUDA_VISIBLE_DEVICES.
set -euo pipefail

if [[ ! ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local.sh NUM_PROCESSES --config FILE[:token,token] [--flag=value ...]" >&2
  exit 2
fi
num_processes=$1
shift

gpus=()
if [[ ${JAX_PLATFORMS:-} == cpu ]]; then
  :
elif [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
  IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES/#-1/}"
elif command -v nvidia-smi >/dev/null; then
  mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader | grep -E '^[0-9]+$')
fi
if ((${#gpus[@]} % num_processes)); then
  echo "launch/local.sh: expected a number of processes that divides the ${#gpus[@]} GPUs," \
    "got $num_processes; set CUDA_VISIBLE_DEVICES, JAX_PLATFORMS=cpu or another number" >&2
  exit 2
fi

# The cores that this shell may use, e.g. 0-3,8 as 0 1 2 3 8.
cores=()
while IFS=- read -r first last; do
  mapfile -t -O "${#cores[@]}" cores < <(seq "$first" "${last:-$first}")
done < <(awk '/^Cpus_allowed_list/ {print $2}' /proc/self/status | tr , '\n')

port=${DSMOE_PORT:-}
while [[ -z $port ]]; do
  port=$((20000 + RANDOM % 12000))
  # A port that somebody answers on is taken.
  if (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then port=; fi
done
export DSMOE_COORDINATOR=127.0.0.1:$port DSMOE_NUM_PROCESSES=$num_processes

# Job control gives every process a group of its own: Ctrl-C then comes once, through the trap,
# and is not ignored, as it is by a background process without job control.
set -m
pids=()
asked_to_stop=
forward() {
  asked_to_stop=1
  if ((${#pids[@]})); then kill -s "$1" "${pids[@]}" 2>/dev/null || true; fi
}
trap 'forward TERM' TERM HUP
trap 'forward INT' INT

for ((id = 0; id < num_processes; id++)); do
  if [[ $asked_to_stop ]]; then break; fi
  share=()
  if ((${#gpus[@]})); then
    size=$((${#gpus[@]} / num_processes))
    mine=$(IFS=,; echo "${gpus[*]:id * size:size}")
    share=(env "CUDA_VISIBLE_DEVICES=$mine")
  elif ((${#cores[@]} >= num_processes)) && command -v taskset >/dev/null; then
    size=$((${#cores[@]} / num_processes))
    mine=$(IFS=,; echo "${cores[*]:id * size:size}")
    share=(taskset --cpu-list "$mine")
  fi
  DSMOE_PROCESS_ID=$id "${share[@]}" "${PYTHON:-python}" -m dsmoe_jax.main "$@" </dev/null &
  pids+=($!)
done

worst=0
for pid in "${pids[@]}"; do
  while true; do
    asked_to_stop=
    status=0
    wait "$pid" || status=$?
    # A signal that was forwarded ends the wait but not the process: wait again.
    if [[ ! $asked_to_stop ]]; then break; fi
  done
  if ((status > worst)); then worst=$status; fi
done
exit "$worst"
