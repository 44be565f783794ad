"""What a command will read, need and take, before it runs: computed, and timed on samples."""
