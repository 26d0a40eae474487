#!/usr/bin/env bash
# Asks for the TPU, waits for it, installs on every VM and starts the run on all of them. Asks again when the TPU is taken
# away, and starts again when the run ended with 75. Costs money from the moment the TPU is there until delete.sh.
# Output comes through this terminal: leave it open, for example in tmux on a machine that stays on.
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
name=soul-8b
scope=(--zone=us-east5-a --project=my-project)
nodes=(soul-8b)
restarts=10

state() {
  gcloud compute tpus queued-resources describe "$name" "${scope[@]}" --format='value(state.state)' 2>/dev/null \
    || echo ABSENT
}

ask() {
  gcloud compute tpus queued-resources create "$name" "${scope[@]}" \
    --accelerator-type=v5p-8 --runtime-version=v2-alpha-tpuv5 --node-id=soul-8b --spot
}

wait_for_it() {
  local now
  while true; do
    now="$(state)"
    case "$now" in
      ACTIVE) return 0 ;;
      FAILED | ABSENT)
        echo "queued resource $name: $now; gcloud compute tpus queued-resources describe says why" >&2
        exit 1
        ;;
      SUSPENDING | SUSPENDED) return 0 ;; # taken away again; what follows fails, and asks again
    esac
    echo "queued resource $name: $now"
    sleep 30
  done
}

on_node() { # NODE WORKER COMMAND
  gcloud compute tpus tpu-vm ssh "$1" "${scope[@]}" --worker="$2" --command="$3"
}

on_all() { # COMMAND; fails if one of the nodes does
  local node pid code=0 pids=()
  for node in "${nodes[@]}"; do
    on_node "$node" all "$1" &
    pids+=("$!")
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || code=$?
  done
  return "$code"
}

copy() {
  local node
  for node in "${nodes[@]}"; do
    on_node "$node" all 'mkdir -p -- ditto-jobs/soul-8b && rm -f -- ditto-jobs/soul-8b/exit_code'
    gcloud compute tpus tpu-vm scp --recurse "${scope[@]}" --worker=all "$here"/* "$node:ditto-jobs/soul-8b/"
  done
}

for ((attempt = 0; attempt <= restarts; attempt++)); do
  now="$(state)"
  if [[ "$now" == FAILED || "$now" == SUSPEND* ]]; then
    gcloud compute tpus queued-resources delete "$name" "${scope[@]}" --force --quiet
    now=ABSENT
  fi
  if [[ "$now" == ABSENT ]]; then
    ask
  fi
  wait_for_it
  if copy && on_all 'bash ditto-jobs/soul-8b/setup.sh' && on_all 'bash ditto-jobs/soul-8b/worker.sh'; then
    echo "the run has ended; delete.sh gives the TPU back"
    exit 0
  fi
  if [[ "$(state)" == ACTIVE ]]; then
    code="$(on_node "${nodes[0]}" 0 'cat ditto-jobs/soul-8b/exit_code' | tr -dc '0-9')" || code=""
    if [[ "$code" != 75 ]]; then
      echo "ended with ${code:-no exit code}; the TPU is still there: delete.sh gives it back" >&2
      exit "${code:-1}"
    fi
  fi
  echo "preempted; start $((attempt + 2)) of $((restarts + 1))" >&2
done
echo "given up after $((restarts + 1)) starts" >&2
exit 75
