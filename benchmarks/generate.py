"""Generating captions against the reference's loop; see `benchmarks.captioner`."""

from benchmarks.captioner import Work, compare_generation, options_of


def main() -> None:
    """Print the comparison."""
    options = options_of(__doc__.splitlines()[0])
    compare_generation(Work(options), options)


if __name__ == "__main__":
    main()
