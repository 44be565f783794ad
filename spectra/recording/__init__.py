"""Recording a training run: what is measured at a snapshot, and the hooks that measure it."""
