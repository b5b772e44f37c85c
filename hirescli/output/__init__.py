"""From decoded rows to the finished file: spool, resizing, finalising, metadata."""
