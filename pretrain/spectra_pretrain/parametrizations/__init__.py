"""What matrices of layers are made of while a model is trained: a file each, and the registry."""
