"""``python -m realspike`` is the `realspike` command."""

from realspike.cli import main

raise SystemExit(main())
