"""``python -m learngene``: the command line."""

from learngene.cli import main

if __name__ == "__main__":  # worker processes import this file, too
    main()
