"""The cascade: a base image and doublings, each a diffusers pipeline call that stays latent."""
