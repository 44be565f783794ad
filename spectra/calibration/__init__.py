"""What a model does on text: its blocks run one after the other, and statistics on the way."""
