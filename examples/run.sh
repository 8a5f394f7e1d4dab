#!/bin/sh
# Classifies the uploaded files and waits: JOS_URL=… JOS_API_KEY=… sh examples/run.sh FOLDER
# WINDOW, MODEL and NAME may be set; WAIT= only creates the job. Its id is kept in KEEP, or FOLDER/job.txt.
set -eu
kept=${KEEP:-$1/job.txt}
reader=$(cat "$1/reader.json") # columns, window and step
[ -z "${WINDOW-}" ] || reader=$(echo "$reader" | sed "s/\"window_size\": [0-9]*/\"window_size\": $WINDOW/")
api() { curl -fsS -H "Authorization: Bearer $JOS_API_KEY" "$@"; }

# as the server knows them: by their names; the class of an example is its folder
examples= files=
for path in "$1"/train/*/*.csv; do
  class=$(basename "$(dirname "$path")")
  examples="$examples${examples:+,}{\"file_id\": \"$(basename "$path")\", \"metadata\": {\"class\": \"$class\"}}"
done
for path in "$1"/test/*.csv; do
  files="$files${files:+,}{\"file_id\": \"$(basename "$path")\"}"
done

api "$JOS_URL/v0.5/batch/jobs" -H 'Content-Type: application/json' -d @- > "$1/job.json" << JSON
{
  "name": "${NAME:-$(basename "$1")}",
  "pipeline_type": "batch",
  "pipeline_key": "machine-state-classification",
  "inputs": {"worker.inference": [$files], "worker.n_shots": [$examples]},
  "parameters": {"worker": {"config": {"model_type": "${MODEL:-hydra}", "reader_config": $reader}}}
}
JSON
grep -o 'job_[a-z0-9]*' "$1/job.json" | head -n 1 > "$kept"
[ "${WAIT-yes}" ] || exit 0

job=$(cat "$kept")
api -N "$JOS_URL/v0.5/batch/jobs/$job/stream" | grep '"event_type"' # ends when the job is over
api "$JOS_URL/v0.5/batch/jobs/$job" | grep -o '"status":"COMPLETED"'
