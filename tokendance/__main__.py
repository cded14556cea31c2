"""``python -m tokendance`` is the command ``tokendance``."""

from tokendance.cli import main

if __name__ == "__main__":
    main()
