"""What every room stands on: faults in one line, files written whole, processes, the environment of a run."""
