#!/usr/bin/env bash
# Process 0 of 2, on its host. SIGTERM stops it there: the run saves and ends with 75.
set -euo pipefail
trap 'ssh -n -o BatchMode=yes -- ann@10.0.0.2 bash ditto-jobs/soul-8b/stop.sh || true' TERM INT
ssh -n -o BatchMode=yes -- ann@10.0.0.2 'bash ditto-jobs/soul-8b/worker.sh 10.0.0.2:8476 2 0' &
child=$!
code=0
wait "$child" || code=$?
# A signal interrupts the waiting, not the run: it has to be waited for again.
while kill -0 "$child" 2>/dev/null; do
  code=0
  wait "$child" || code=$?
done
exit "$code"
