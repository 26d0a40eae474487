#!/usr/bin/env bash
# On a login node, in a folder that the compute nodes see: installs, then submits the job.
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
bash "$here/setup.sh"
cd -- "$here"
sbatch job.sbatch
