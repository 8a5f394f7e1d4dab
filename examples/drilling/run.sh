#!/bin/sh
# Classifies the uploaded files and waits: JOS_URL=… JOS_API_KEY=… sh examples/drilling/run.sh FOLDER
# WINDOW, MODEL and NAME may be set; WAIT= only creates the job. Its id is kept in KEEP, or FOLDER/job.txt.
set -eu
kept=${KEEP:-$1/job.txt}
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
  "name": "${NAME:-drilling or not}",
  "pipeline_type": "batch",
  "pipeline_key": "machine-state-classification",
  "inputs": {"worker.inference": [$files], "worker.n_shots": [$examples]},
  "parameters": {"worker": {"config": {
    "model_type": "${MODEL:-hydra}",
    "reader_config": {
      "data_columns": ["BPOS", "DBTM", "FLWI", "HDTH", "HKLD", "ROP", "RPM", "SPPA", "WOB"],
      "timestamp_column": "DATE_TIME", "window_size": ${WINDOW:-16}, "step_size": 4}}}}
}
JSON
grep -o 'job_[a-z0-9]*' "$1/job.json" | head -n 1 > "$kept"
[ "${WAIT-yes}" ] || exit 0

job=$(cat "$kept")
api -N "$JOS_URL/v0.5/batch/jobs/$job/stream" | grep '"event_type"' # ends when the job is over
api "$JOS_URL/v0.5/batch/jobs/$job" | grep -o '"status":"COMPLETED"'
