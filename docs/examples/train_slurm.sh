#!/bin/bash
# Train on two machines of a SLURM cluster: sbatch docs/examples/train_slurm.sh
# Checked for syntax only: it has not been tested on a real cluster.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
# Data, --out and the project's folder must be on a disk that all machines share.
export HOSTS=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
resume=$([ -e my_model/checkpoint.npz ] && echo --resume)
srun bash -c '
  export TF_CONFIG=$(python -c "
import json, os
workers = [f\"{host}:29500\" for host in os.environ[\"HOSTS\"].split()]
print(json.dumps({\"cluster\": {\"worker\": workers}, \"task\": {\"type\": \"worker\", \"index\": int(os.environ[\"SLURM_PROCID\"])}}))
")
  exec python -m utils train --data my_photos --out my_model '"$resume"'
'
