#!/usr/bin/env bash
# Stops the process of this host, waiting a minute for one that is being started: the run saves first.
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
for ((half = 0; half < 120; half++)); do
  if [[ -s "$here/pid" ]]; then break; fi
  sleep 0.5
done
kill -TERM "$(<"$here/pid")"
