"""Training of the built-in model: pictures, autoencoder, denoiser. Never imported by generation."""
