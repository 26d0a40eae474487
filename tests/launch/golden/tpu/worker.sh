#!/usr/bin/env bash
# One process of the run, on its host. Arguments, where the hosts do not find each other: HOST:PORT of process 0, how
# many processes there are, and the number of this one. SIGTERM is passed on: the run saves and ends with 75.
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
rm -f -- "$here/exit_code" "$here/pid"
sudo mkdir -p /mnt/ditto-jax
if ! mountpoint --quiet /mnt/ditto-jax; then
  command -v mount.nfs >/dev/null || { sudo apt-get update -qq && sudo apt-get install -y -qq nfs-common; }
  sudo mount -t nfs 10.0.0.2:/runs /mnt/ditto-jax
fi
bash "$here/setup.sh"
export SOUL_DATA_DIR='it'"'"'s "$(touch pwned)" `id`; rm -rf / & #
{{ x }} %s'
if (($# == 3)); then
  export JAX_COORDINATOR_ADDRESS="$1" JAX_NUM_PROCESSES="$2" JAX_PROCESS_ID="$3"
fi
cd -- /mnt/ditto-jax
trap '[[ -z "${!-}" ]] || kill -TERM "$!" 2>/dev/null || true' TERM INT HUP
"$here/env/bin/ditto-jax" train --config "$here/run.yaml" &
child=$!
echo "$child" >"$here/pid"
code=0
wait "$child" || code=$?
# A signal interrupts the waiting, not the run: it has to be waited for again.
while kill -0 "$child" 2>/dev/null; do
  code=0
  wait "$child" || code=$?
done
rm -f -- "$here/pid"
echo "$code" >"$here/exit_code"
exit "$code"
