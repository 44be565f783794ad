"""Array functions: measures of spectra and gradients, on numpy arrays, without labels."""
