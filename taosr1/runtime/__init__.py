"""What runs any program: command line, signals, files, run folders, checkpoints, jobs in chunks, ranks."""
