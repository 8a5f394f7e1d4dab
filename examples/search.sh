#!/bin/sh
# Tries many configurations at once: JOS_URL=… JOS_API_KEY=… sh examples/search.sh FOLDER
# WINDOWS and MODELS may be set, such as WINDOWS='25 50'. All jobs are created before the first is waited for.
set -eu
here=$(dirname "$0")
said() { grep -o "\"$1\": [0-9]*" "$2/reader.json" | grep -o '[0-9]*$'; }
window=$(said window_size "$1") step=$(said step_size "$1")
jobs=
for window in ${WINDOWS:-$((window / 2)) $window}; do
  for model in ${MODELS:-stats hydra}; do
    WAIT='' KEEP="$1/searched.txt" WINDOW=$window MODEL=$model NAME="$model, $window" sh "$here/run.sh" "$1"
    jobs="$jobs $(cat "$1/searched.txt"):$window:$model"
  done
done

for one in $jobs; do
  IFS=: read -r job window model << END
$one
END
  # the stream of events ends when the job is over
  curl -fsSN -H "Authorization: Bearer $JOS_API_KEY" "$JOS_URL/v0.5/batch/jobs/$job/stream" > /dev/null
  sh "$here/download.sh" "$1" "$job" "$1/search/$job" > /dev/null
  echo "$(python3 "$here/evaluate.py" "$1" "$window" "$step" "$1/search/$job" | tail -n 1)  window $window, $model"
done | sort -r
