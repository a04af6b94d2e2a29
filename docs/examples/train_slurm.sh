#!/bin/bash
# Train on two machines of a SLURM cluster: sbatch docs/examples/train_slurm.sh
# Checked for syntax only: it has not been tested on a real cluster.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
# Data, --out and the project's folder must be on a disk that all machines share.
resume=$([ -e my_model/checkpoint.npz ] && echo --resume)
srun python -m utils train --data my_photos --out my_model $resume
