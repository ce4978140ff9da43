"""What every stage stands on: a run's folder, atomic files, processes, progress, random streams, the one error."""
