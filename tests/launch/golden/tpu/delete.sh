#!/usr/bin/env bash
# Gives the TPU back, with everything on the disks of its VMs.
set -euo pipefail
name=soul-8b
scope=(--zone=us-east5-a --project=my-project)
gcloud compute tpus queued-resources delete "$name" "${scope[@]}" --force --quiet
