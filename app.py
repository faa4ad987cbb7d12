"""``python app.py``: the page on http://127.0.0.1:7860; ``--help`` tells the options."""

import sys

from app.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
