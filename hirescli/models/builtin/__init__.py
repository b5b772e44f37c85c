"""The built-in model: its modules and, in `weights/`, its weights in diffusers layout."""
