#!/bin/sh
# Fetches the results of a job: JOS_URL=… JOS_API_KEY=… sh examples/download.sh FOLDER [JOB [INTO]]
# JOB: FOLDER/job.txt; INTO: FOLDER/results
set -eu
job=${2:-$(cat "$1/job.txt")}
into=${3:-$1/results}
rm -rf "$into"
mkdir -p "$into"
cd "$into"
curl -fsS -H "Authorization: Bearer $JOS_API_KEY" "$JOS_URL/v0.5/batch/jobs/$job/outputs?limit=1000" |
  grep -o '"ref":"[^"]*' | cut -d '"' -f 4 | while read -r link; do
  curl -fsSOJ "$link" # signed, good for an hour: it needs no key
done
echo "$(find . -name '*.csv' | wc -l) files are in $into"
