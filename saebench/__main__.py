"""`python -m saebench` and `torchrun -m saebench`: the command line."""

import os
import sys

# `-m` puts the working folder first on the path, where a folder of a plugin's name would shadow the plugin. The installed
# `saebench` command has no such entry.
if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from saebench.cli import main  # after the path is set

if __name__ == "__main__":
    main()
