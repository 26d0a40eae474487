#!/usr/bin/env bash
# Installs the program beside this file, once: a pinned uv, a Python of its own (whatever the system has), and packages
# in the versions of the machine that wrote this. UV_NO_MANAGED_PYTHON=1 takes the system's Python instead.
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
cd -- "$here"
wanted="$(cat requirements.txt constraints.txt uv.txt)"
if [[ -x env/bin/ditto-jax && -f env/.installed && "$(cat env/.installed)" == "$wanted" ]]; then
  exit 0
fi
if [[ -z "${UV_NO_MANAGED_PYTHON:-}" ]]; then
  export UV_MANAGED_PYTHON=1
fi
export UV_PYTHON_INSTALL_DIR="$here/python"
python3 -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --upgrade --target tools \
  --requirement uv.txt
tools/bin/uv venv --quiet --clear --python 3.12 env
tools/bin/uv pip install --quiet --python env/bin/python --constraint constraints.txt --requirement requirements.txt
printf '%s' "$wanted" >env/.installed
