"""Our code beside a named peer on the same work, machine and weights, in one run.

`python -m benchmarks.<name>` prints what it measures and ends with one line of JSON: `name`, `peer`, `ratio` (our rate
over the peer's, median of pairs), `equal` (do the results agree, and how far), `device`, `work`. `--small` is a size
for a busy machine or a first look: a minute or two.
"""
