"""The one training loop: pretraining with a recorder attached."""
