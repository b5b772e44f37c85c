"""What stays beside an output while it is made: the run directory."""
