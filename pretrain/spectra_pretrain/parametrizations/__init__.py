"""What a layer's matrix is made of during training: a file for each, and the registry of them."""
