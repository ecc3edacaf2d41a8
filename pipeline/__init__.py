"""im2speech as a library: tensors and files; no params.yaml, no command line, no machine settings."""
