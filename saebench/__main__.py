"""`python -m saebench` and `torchrun -m saebench`: the command line."""

from saebench.cli import main

if __name__ == "__main__":
    main()
