"""Training of the built-in model: pictures, autoencoder, denoiser. Generation never imports it."""
