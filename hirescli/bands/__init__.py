"""The band engine: unmodified diffusers modules run in bands of rows. See DESIGN.md beside it."""
