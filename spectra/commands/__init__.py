"""One module per command, and what commands share: reading options and talking to the user."""
