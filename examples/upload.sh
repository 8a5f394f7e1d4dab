#!/bin/sh
# Uploads what prepare.py wrote: JOS_URL=… JOS_API_KEY=… sh examples/upload.sh FOLDER
set -eu
for file in "$1"/train/*/*.csv "$1"/test/*.csv; do
  curl -fsS -H "Authorization: Bearer $JOS_API_KEY" "$JOS_URL/v0.5/files" -F "file=@$file;type=text/csv" > /dev/null
done
echo "$(find "$1/train" "$1/test" -name '*.csv' | wc -l) files are on $JOS_URL"
