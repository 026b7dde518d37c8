"""Makes this folder importable for the tests below it: they share `bad_pictures`."""
