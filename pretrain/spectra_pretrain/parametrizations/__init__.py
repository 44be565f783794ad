"""What the matrices of layers are made of while a model is trained: a file for each way, and the registry."""
