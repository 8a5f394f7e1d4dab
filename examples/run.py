"""Classifies the uploaded files and waits: python examples/run.py FOLDER

The job's id is kept in FOLDER/job.txt. Ctrl-C stops the waiting and not the job; `jos events last --follow` goes on.
"""

import json
import sys
from pathlib import Path

import jos


def create(client, folder, name, reader, **config):
    """A job over what `upload.py` uploaded: files are named as the server knows them, their class is their folder."""
    return client.jobs.create(
        "machine-state-classification",
        inputs={
            "inference": [{"file_id": path.name} for path in sorted(folder.glob("test/*.csv"))],
            "n_shots": [
                {"file_id": path.name, "metadata": {"class": path.parent.name}}
                for path in sorted(folder.glob("train/*/*.csv"))
            ],
        },
        parameters={"worker": {"config": {"reader_config": reader, **config}}},
        name=name,
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    reader = json.loads((folder / "reader.json").read_text())  # columns, window and step
    with jos.Client() as client:
        job = create(client, folder, folder.resolve().name, reader)
        (folder / "job.txt").write_text(f"{job.id}\n")
        print(job.wait(progress=True))
