#!/bin/sh
# Train one model with two processes on this machine, as two machines would. Run it from the project's folder.
#   sh docs/examples/two_workers.sh [FOLDER FOR THE MODEL]
set -e
out=${1:-out/two_workers}
hosts='["127.0.0.1:29500", "127.0.0.1:29501"]'
for index in 0 1; do
  TF_CONFIG="{\"cluster\": {\"worker\": $hosts}, \"task\": {\"type\": \"worker\", \"index\": $index}}" \
    python -m utils train --data synthetic --n-images 120 --image-size 32 --backbone small_resnet --weights none \
    --clusters 3 --steps 60 --out "$out" &
  workers="$workers $!"
done
for worker in $workers; do wait "$worker"; done
