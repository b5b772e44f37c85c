"""The commands of `hires eval`, a file each."""
