"""The manifest for GKE has the form of a JobSet, and says what the settings say."""

from __future__ import annotations

import pytest
import yaml

from launch.targets.render import FINAL_CODES
from tests.rendered_jobs import CASES, HOSTILE, rendering

# Objects with these fields alone; a list holds objects of its first entry's form, and a type is one of a value.
_JOBSET = {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {"name": str, "namespace": str, "labels?": dict, "annotations?": dict},
    "spec": {
        "network": {"enableDNSHostnames": True, "subdomain": str},
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
        },
        "replicatedJobs": [
            {
                "name": "worker",
                "replicas": int,
                "template": {
                    "spec": {
                        "completionMode": "Indexed",
                        "parallelism": int,
                        "completions": int,
                        "backoffLimit": 0,
                        "podFailurePolicy": {
                            "rules": [
                                {
                                    "action": "FailJob",
                                    "onExitCodes": {"containerName": "ditto-jax", "operator": "In", "values": [int]},
                                }
                            ]
                        },
                        "template": {
                            "spec": {
                                "restartPolicy": "Never",
                                "terminationGracePeriodSeconds": int,
                                "shareProcessNamespace": True,
                                "serviceAccountName?": str,
                                "nodeSelector": dict,
                                "tolerations?": [
                                    {"key": str, "operator": "Equal", "value": str, "effect": "NoSchedule"}
                                ],
                                "containers": [
                                    {
                                        "name": "ditto-jax",
                                        "image": str,
                                        "command": ["ditto-jax"],
                                        "args": [str],
                                        "workingDir": str,
                                        "env?": [
                                            {"name": str, "value?": str, "valueFrom?": {"fieldRef": {"fieldPath": str}}}
                                        ],
                                        "envFrom?": [{"secretRef": {"name": str}}],
                                        "resources": {"limits": dict},
                                        "volumeMounts": [{"name": str, "mountPath": str, "readOnly?": True}],
                                    }
                                ],
                                "volumes": [
                                    {
                                        "name": str,
                                        "configMap?": {"name": str},
                                        "persistentVolumeClaim?": {"claimName": str},
                                        "emptyDir?": {"medium": "Memory"},
                                    }
                                ],
                            }
                        },
                    }
                },
            }
        ],
    },
}


def check_form(value, form, where="") -> None:
    """Asserts that a value of YAML has a form, as the API server would with the fields of its schema."""
    if isinstance(form, dict):
        assert isinstance(value, dict), where
        fields = {name.rstrip("?"): inner for name, inner in form.items()}
        assert set(value) <= set(fields), f"{where}: unknown {set(value) - set(fields)}"
        assert {name for name in form if not name.endswith("?")} <= set(value), where
        for name, inner in value.items():
            check_form(inner, fields[name], f"{where}.{name}")
    elif isinstance(form, list):
        assert isinstance(value, list) and value, where
        for entry in value:
            check_form(entry, form[0], f"{where}[]")
    elif isinstance(form, type):
        assert type(value) is form, f"{where}: {value!r} is no {form.__name__}"
        if form is dict:
            assert all(type(inner) in (str, int) for inner in value.values()), where
    else:
        assert value == form, f"{where}: {value!r} is not {form!r}"


@pytest.mark.parametrize("name", ["gke_tpu", "gke_gpu"])
def test_the_manifest_has_the_form_of_a_jobset(name):
    settings, jobset = yaml.safe_load_all(rendering(name).files["jobset.yaml"])
    check_form(jobset, _JOBSET)
    assert settings["kind"] == "ConfigMap"
    assert settings["data"]["run.yaml"] == rendering(name).files["run.yaml"]
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = spec["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == CASES[name].gke.hosts_per_slice
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == list(FINAL_CODES)
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert all(sum(key != "name" for key in volume) == 1 for volume in pod["volumes"])


def test_the_form_of_a_jobset_is_checked_for_real():
    _, jobset = yaml.safe_load_all(rendering("gke_gpu").files["jobset.yaml"])
    jobset["spec"]["failurePolicy"]["maxRestart"] = 3
    with pytest.raises(AssertionError, match="maxRestart"):
        check_form(jobset, _JOBSET)


def test_variables_of_pods_arrive_as_they_are():
    """Kubernetes puts the value of NAME where a text has $(NAME), and one dollar where it has two."""
    _, jobset = yaml.safe_load_all(rendering("gke_tpu").files["jobset.yaml"])
    container = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    value = container["env"][0]["value"]
    assert "$(" not in value.replace("$$", "")
    assert value.replace("$$", "$") == HOSTILE


def test_pods_with_gpus_know_each_other():
    _, jobset = yaml.safe_load_all(rendering("gke_gpu").files["jobset.yaml"])
    container = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    # Pods are called JOBSET-JOB-REPLICA-INDEX, below the subdomain of the JobSet.
    assert env == {
        "JAX_COORDINATOR_ADDRESS": "soul-8b-worker-0-0.soul-8b:8476",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": None,
    }
