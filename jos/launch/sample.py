"""A RayJob to see whether a cluster would take what JOS makes; it is never made there in earnest.

May import: jos.core, jos.launch. Tests: tests/integration/test_doctor_kubernetes.py.
"""

from __future__ import annotations

from datetime import UTC, datetime

from jos.core.model import Job, Json, Pipeline
from jos.launch.kube_profile import KubeProfile
from jos.launch.rayjob import rayjob


def sample(profile: KubeProfile) -> Json:
    """With all fields that JOS writes, but for GPUs, which only pipelines that need them have."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    job = Job(
        id="job_probe",
        org_id="org_local",
        name="probe",
        pipeline_type="batch",
        pipeline_key="probe",
        pipeline_version="1.0.0",
        parameters={},
        created_at=now,
        updated_at=now,
        queued_at=now,
    )
    pipeline = Pipeline(
        pipeline_key="probe",
        pipeline_version="1.0.0",
        name="probe",
        worker="probe:Probe",
        default_config={},
        config_schema={},
        user_config_schema={},
        inputs={},
        outputs={},
    )
    return rayjob(job, pipeline, profile, token="probe", number=1, installation="probe")
