"""Foreign checkpoints -> the folders and files of this toolkit, without running a line of foreign code.

`unpickle` and `torch_files` read; the others know one family of files each and write safetensors with a
`provenance.json` beside them.
"""
