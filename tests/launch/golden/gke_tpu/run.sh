#!/usr/bin/env bash
# Hands the manifest to the cluster that kubectl is set to; says how to follow and to stop the job.
set -euo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
kubectl apply --filename "$here/jobset.yaml"
cat <<'TEXT'
follow: kubectl logs --namespace default --follow --prefix --selector jobset.sigs.k8s.io/jobset-name=soul-8b
state:  kubectl get jobset --namespace default soul-8b
stop:   kubectl delete --namespace default jobset/soul-8b configmap/soul-8b
TEXT
