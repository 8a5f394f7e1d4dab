"""Fetches the results of the job in FOLDER/job.txt into FOLDER/results: python examples/download.py FOLDER"""

import shutil
import sys
from pathlib import Path

import jos

folder = Path(sys.argv[1])
shutil.rmtree(folder / "results", ignore_errors=True)  # of a job before
with jos.Client() as client:
    paths = client.job((folder / "job.txt").read_text().strip()).download(folder / "results")
print(f"{len(paths)} files are in {folder / 'results'}")
