"""``python -m gmail_align`` is ``gmail-align``."""

from __future__ import annotations

from gmail_align.cli.main import main

if __name__ == "__main__":
    main()
