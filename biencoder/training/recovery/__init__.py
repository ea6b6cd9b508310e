"""What a run leaves, and how the next start goes on from it: checkpoints, the run folder and its lock, out of memory."""
