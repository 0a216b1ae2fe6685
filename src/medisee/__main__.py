"""`python -m medisee` is the command line."""

from __future__ import annotations

from medisee.cli import main

if __name__ == "__main__":
    main()
