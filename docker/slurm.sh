#!/usr/bin/env bash
# A pipeline as a Slurm array: each job takes its share of the shards, then one last job does what needs all of them.
#
#   bash docker/slurm.sh FILE OUT [JOBS]
#   bash docker/slurm.sh pipelines/laion_like.yaml /shared/me/laion_like 16
#
# OUT must lie on a file system that every node sees. Run it again after a failure: what is measured is not measured again.
# Adjust the three #SBATCH lines, and the environment below, to your cluster; options of your own go into SBATCH_* variables.
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=12:00:00
set -euo pipefail

file=${1:?"usage: bash docker/slurm.sh FILE OUT [JOBS]"}
out=${2:?"usage: bash docker/slurm.sh FILE OUT [JOBS]"}
jobs=${3:-16}

if [ -z "${SLURM_JOB_ID:-}" ]; then                  # on the login node: hand in both jobs
    array=$(sbatch --parsable --job-name=curate --array="0-$((jobs - 1))" "$0" "$file" "$out")
    last=$(sbatch --parsable --job-name=curate-last --dependency="afterok:${array%%;*}" "$0" "$file" "$out")
    echo "job ${array%%;*} measures in $jobs parts; then job ${last%%;*} finishes"
    exit
fi

# Slurm runs a copy of this script from its own folder, so the paths are those of the folder it was handed in from.
cd "$SLURM_SUBMIT_DIR"
export PATH="$PWD/.venv/bin:$PATH"

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    exec curate run "$file" --out "$out" --on local --workers "${SLURM_CPUS_PER_TASK:-1}" \
        --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
fi
exec curate run "$file" --out "$out" --on local --workers "${SLURM_CPUS_PER_TASK:-1}"
