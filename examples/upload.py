"""Uploads what `prepare.py` wrote: python examples/upload.py FOLDER"""

import sys
from pathlib import Path

import jos

folder = Path(sys.argv[1])
with jos.Client() as client:
    records = client.files.upload([folder / "train", folder / "test"])  # a second time, only what changed is sent
print(f"{len(records)} files are on {client.url}")
