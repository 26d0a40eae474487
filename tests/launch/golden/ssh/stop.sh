#!/usr/bin/env bash
# Stops the process of this host: the run saves first.
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
kill -TERM "$(cat -- "$here/pid")"
