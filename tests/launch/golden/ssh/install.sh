#!/usr/bin/env bash
# Copies this folder to every host and installs there, on all at once.
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
install_on() { # HOST
  ssh -n -o BatchMode=yes -- "$1" 'mkdir -p -- ditto-jobs/soul-8b && rm -f -- ditto-jobs/soul-8b/exit_code'
  scp -q -o BatchMode=yes -r -- "$here"/* "$1:ditto-jobs/soul-8b/"
  ssh -n -o BatchMode=yes -- "$1" 'bash ditto-jobs/soul-8b/setup.sh'
}
pids=()
for host in ann@10.0.0.2 ann@10.0.0.3; do
  install_on "$host" &
  pids+=("$!")
done
code=0
for pid in "${pids[@]}"; do
  wait "$pid" || code=$?
done
exit "$code"
