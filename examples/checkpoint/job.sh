#!/bin/bash
#SBATCH --job-name=annealing
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
#SBATCH --signal=B:TERM@60    # SIGTERM to this script, a minute before the time is up
#SBATCH --requeue             # after a preemption or a node's failure SLURM starts it again ...
#SBATCH --open-mode=append    # ... and writes on in the same file
#SBATCH --output=annealing-%j.log

# In this folder: sbatch job.sh, once or several times; the jobs share the table. On more than one node the
# table must be on a server (provider and credentials as in the README), and this folder where all nodes see it.

trap 'kill -TERM $!' TERM     # passed on: `run.py` saves, puts its rows back and ends
python run.py &
while kill -0 $! 2>/dev/null; do
    wait $!                   # until it ends, or until a signal has been passed on
done
wait $!
status=$?

# 75: stopped by SIGTERM. Into the queue again, under the same number; but not if it was cancelled (`scancel`
# sends SIGTERM, too), and a preempted job SLURM puts there itself.
if [ $status -eq 75 ] && [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
