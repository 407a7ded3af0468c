"""``python -m viditq`` is the ``viditq`` program."""

from viditq.cli import main

if __name__ == "__main__":
    main()
