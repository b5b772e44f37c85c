"""The local page that zooms into a picture while and after it is made."""
