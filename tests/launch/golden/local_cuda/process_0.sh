#!/usr/bin/env bash
# Process 0 of 2 on this machine.
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
export JAX_COORDINATOR_ADDRESS=127.0.0.1:8476 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0
export JAX_PLATFORMS=cuda CUDA_VISIBLE_DEVICES=0,1,2,3
cd -- /home/ann
exec /opt/ditto/bin/python -m ditto_jax train --config "$here/run.yaml"
