"""Planning: stages, memory, disk and time of a run, known before anything heavy is loaded."""
