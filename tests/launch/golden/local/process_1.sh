#!/usr/bin/env bash
# Process 1 of 2 on this machine.
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
export JAX_COORDINATOR_ADDRESS=127.0.0.1:8476 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2
cd -- /home/ann
exec /opt/ditto/bin/python -m ditto_jax doctor --skip_canaries --config "$here/run.yaml"
